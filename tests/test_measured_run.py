"""A run whose sites are measured: fresh samples count, stale ones do not, and `verify` knows."""

import json
import math
import shutil

import pytest

from tests.signalserver import TOKEN, serving
from tests.virtual import START, Virtual, experiment
from uncurtail import config as configuration
from uncurtail import sourcing
from uncurtail.adapters import clock
from uncurtail.adapters.sitewatts import SiteWatts
from uncurtail.config import ConfigError
from uncurtail.core.events import Trouble, unix
from uncurtail.core.fleet import Phase
from uncurtail.core.measured import counted_w, signal, unmeasured
from uncurtail.core.orders import Watts
from uncurtail.core.signals import Reading
from uncurtail.report.summary import summarise
from uncurtail.runfolder import RunFolder
from uncurtail.verify import verify

T0 = unix(START)
HOUR = 3600.0
NVML = signal("nvml")


def sample(value, published=None, t=T0) -> Reading:
    return Reading("oslo", t, value, published, NVML)


@pytest.mark.parametrize(
    ("reading", "now", "up_since", "watts"),
    [
        pytest.param(sample(900.0), T0 + 60.0, T0, 940.0, id="fresh"),
        pytest.param(sample(0.0), T0, T0, 40.0, id="nothing-is-a-value"),
        pytest.param(sample(900.0), T0 + 61.0, T0, None, id="stale"),
        pytest.param(sample(900.0, T0 - 70.0), T0, T0 - 900.0, None, id="late"),
        pytest.param(sample(900.0), T0 + 10.0, T0 + 5.0, None, id="of-the-session-before"),
        pytest.param(sample(-1.0), T0, T0, None, id="negative"),
        pytest.param(sample(math.nan), T0, T0, None, id="nan"),
        pytest.param(sample(None), T0, T0, None, id="unknown"),
        pytest.param(Reading("oslo", T0, 90.0), T0, T0, None, id="an-intensity"),
        pytest.param(None, T0, T0, None, id="none-yet"),
    ],
)
def test_a_measurement_counts_while_it_is_fresh_and_of_this_session(reading, now, up_since, watts):
    assert counted_w(reading, now, 60.0, up_since, 40.0) == watts


def test_what_is_not_measured_is_said():
    said = unmeasured([("oslo", "nvml"), ("rome", "rapl")])
    assert said == "power is not measured at oslo (nvml), rome (rapl): declared watts count"
    assert unmeasured([]) is None


SITES = {
    "duck": {"preset": "duck", "utc_offset_h": -8, "power_from": "nvml", "power_beside_w": 50.0},
    "windy": {"preset": "windy", "utc_offset_h": -6},
}
REAL_W = {Phase.PROVISIONING: 200.0, Phase.IDLE: 250.0, Phase.TRAINING: 1500.0}
FAILS_H = (8.0, 9.0)  # meanwhile nothing is measured


class Measuring:
    """What the state plane hears of a site that measures itself every 15 s, by its phase."""

    def __init__(self):
        self.run: Virtual | None = None

    @property
    def watts(self):
        if self.run is None or FAILS_H[0] <= (self.run.t - T0) / HOUR < FAILS_H[1]:
            return {}
        state = self.run.loop._states["duck"]
        if state.phase is Phase.RELEASED:
            return {}
        stamp = self.run.t // 15.0 * 15.0
        return {"duck": Watts(state.session, REAL_W.get(state.phase, 1000.0), "nvml", stamp)}


def settings(sites=SITES, **sections):
    sections.setdefault("run", {"duration_s": 12 * HOUR})
    body = json.loads(configuration.dump(experiment(**sections)))
    body["fleet"]["power_stale_after_wall_s"] = 90.0  # ticks may lie a minute apart
    return configuration.parse({**body, "sites": sites, "policy": {"kind": "always"}}, "test")


def play(path, faults=()):
    heard = Measuring()

    def now():
        return T0 if heard.run is None else heard.run.t

    virtual = Virtual(
        path, settings(), steps_per_epoch=10**6, power=lambda: [SiteWatts(heard, now)]
    )
    heard.run = virtual
    virtual.until(T0 + 13 * HOUR, [(T0 + h * HOUR, fault) for h, fault in faults])
    virtual.close()
    assert virtual.loop.finished
    return virtual


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory):
    return play(tmp_path_factory.mktemp("measured"))


def failing(folder):
    checks = verify(folder, recompute_tokens=False)
    return {check.name: check.detail for check in checks if check.passed is False}


def by_source(virtual, site, phase):
    """Watts that were counted in a phase, by what said so."""
    found: dict[str, set[float]] = {}
    for row in virtual.folder.read_power():
        segment = row.segment
        if segment.site == site and segment.phase == phase:
            found.setdefault(segment.power_from, set()).add(segment.power_w)
    return found


def test_measured_watts_count_in_every_phase_and_declared_ones_where_there_are_none(measured_run):
    training = by_source(measured_run, "duck", Phase.TRAINING)
    assert 1550.0 in training["nvml"], "what is not seen is added"
    assert training["model"] == {2024.0}, "for an hour nothing was measured"
    assert by_source(measured_run, "duck", Phase.PROVISIONING)["nvml"] == {250.0}
    assert by_source(measured_run, "windy", Phase.TRAINING) == {"model": {2024.0}}
    ledger = measured_run.loop.meter.ledger
    training_tally = ledger.total(site="duck", phase=Phase.TRAINING)
    mean_w = training_tally.energy_j / training_tally.duration_s
    assert mean_w == pytest.approx((1550.0 * 11 + 2024.0) / 12, rel=0.02)


def test_a_measured_run_verifies(measured_run):
    assert failing(measured_run.folder) == {}


def test_the_report_says_how_much_was_measured(measured_run):
    sites = summarise(measured_run.folder)["footprint"]["sites"]
    share = sites["duck"]["total"]["measured_share"]
    assert share == pytest.approx(11 / 12, abs=0.05)
    assert sites["windy"]["total"]["measured_share"] == 0.0


def test_a_site_that_measures_no_more_is_trouble(measured_run):
    said = [e for e in measured_run.folder.read_events() if isinstance(e, Trouble)]
    power = [e for e in said if e.source == "power"]
    assert power
    assert power[0].message == "power is not measured at duck (nvml): declared watts count"
    assert T0 + 8 * HOUR <= power[0].t <= T0 + 8 * HOUR + 220.0
    assert power[-1].t <= T0 + 9 * HOUR + 30.0


def test_a_new_coordinator_goes_on_measuring(tmp_path):
    virtual = play(tmp_path, [(3.0, Virtual.restart), (7.5, Virtual.restart)])
    assert failing(virtual.folder) == {}
    assert 1550.0 in by_source(virtual, "duck", Phase.TRAINING)["nvml"]


POWER, WATTS = "series/power.csv", "series/watts.csv"


def altered(name, needle, old, new):
    def change(path):
        lines = (path / name).read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if needle in line and old in line)
        lines[at] = lines[at].replace(old, new, 1)
        (path / name).write_text("\n".join(lines) + "\n")

    return change


def beside(path):
    body = json.loads((path / "resolved.json").read_text())
    body["sites"]["duck"]["power_beside_w"] = 49.0
    (path / "resolved.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(altered(WATTS, "duck", "1500", "1501"), id="another-sample"),
        pytest.param(altered(POWER, "duck,training,1550", "1550", "1650"), id="another-row"),
        pytest.param(altered(POWER, "duck,training,1550", "nvml", "rapl"), id="another-meter"),
        pytest.param(altered(POWER, "duck,training,1550", "nvml", "model"), id="a-model-instead"),
        pytest.param(altered(POWER, "windy,training", "model", "nvml"), id="never-measured"),
        pytest.param(lambda path: (path / WATTS).unlink(), id="no-samples"),
        pytest.param(beside, id="another-rest"),
    ],
)
def test_a_measurement_that_was_altered_fails_by_name(measured_run, tmp_path, change):
    copied = tmp_path / measured_run.folder.path.name
    shutil.copytree(measured_run.folder.path, copied)
    change(copied)
    assert "energy-adds-up" in failing(RunFolder(copied))


@pytest.mark.parametrize(
    ("site", "sections", "message"),
    [
        ({"power_from": "nvml"}, {"clock": {"start": START, "speed": 60.0}},
         "sites.duck.power_from 'nvml' measures real watts: set clock.speed = 1"),
        ({"power_from": "prometheus"}, {}, "needs its power_query and energy.prometheus_url"),
        ({"power_from": "prometheus", "power_query": "x"}, {}, "needs its power_query and energy"),
        ({"power_from": "guess"}, {}, "sites.duck.power_from = 'guess'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_with_the_remedy(site, sections, message):
    with pytest.raises(ConfigError) as refusal:
        experiment(sites={"duck": {"preset": "duck", **site}}, **sections)
    assert message in str(refusal.value)


def test_prometheus_is_asked_for_a_sites_power_by_the_coordinator(monkeypatch):
    monkeypatch.setenv("UNCURTAIL_PROMETHEUS_TOKEN", TOKEN)
    query = "sum(node_power_watts{site='duck'})"
    with serving(value=lambda _t: 1234.0) as server:
        sites = {"duck": {"preset": "duck", "power_from": "prometheus", "power_query": query}}
        chosen = experiment(sites=sites, energy={"prometheus_url": server.url})
        start = clock.wall()
        (asked,) = sourcing.asked_power(chosen, start)
        told: list[Reading] = []
        while not told:
            clock.pause(0.02)
            told = asked.readings(start - 1.0, clock.wall())
        asked.close()  # type: ignore[attr-defined]
        assert server.requests[0].query["query"] == query
    assert (told[0].value, told[0].signal.unit, told[0].signal.source) == (
        1234.0,
        "W",
        "prometheus",
    )
    assert sourcing.asked_power(experiment(), start) == []
