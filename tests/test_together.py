"""A site that is measured, priced, capped and on its own power, all at once: what counts then."""

import csv
import json

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from tests.test_capped import CAPPED_W, HOUR, SPEED, T0, trace
from tests.test_capped_own import STRONG, WEAK
from tests.virtual import Virtual, experiment
from uncurtail import config as configuration
from uncurtail import sourcing, wiring
from uncurtail.adapters.sitewatts import SiteWatts
from uncurtail.core.fleet import Phase
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.orders import Watts
from uncurtail.plan.compare import compare
from uncurtail.report.summary import summarise
from uncurtail.runfolder import POWER
from uncurtail.verify import verify

GRID = trace((0, 400), (2, 150), (3, 40), (4, 400))
PRICES = ((0, 0.50), (2, 0.25), (3, 0.10), (4, 0.50))
REAL_W = {Phase.PROVISIONING: 200.0, Phase.IDLE: 250.0, Phase.TRAINING: 1700.0}
REAL_CAPPED_W = 1100.0


class Measuring:
    """What the state plane hears: every 15 s the watts of the site's phase."""

    def __init__(self, real_w=REAL_W):
        self.run: Virtual | None = None
        self.real_w = real_w

    @property
    def watts(self):
        if self.run is None:
            return {}
        state = self.run.loop._states["duck"]
        if state.phase is Phase.RELEASED:
            return {}
        watts = self.real_w.get(state.phase, REAL_CAPPED_W)
        return {"duck": Watts(state.session, watts, "nvml", self.run.t // 15.0 * 15.0)}


def write_prices(path) -> str:
    hours, euros = (np.array(column) for column in zip(*PRICES, strict=True))
    times = T0 + 300.0 * np.arange(12 * 8)
    at = np.searchsorted(T0 + hours * HOUR, times, side="right") - 1
    stamps = [stamp.isoformat() for stamp in pd.to_datetime(times, unit="s", utc=True)]
    rows = [f"{stamp},{euro}" for stamp, euro in zip(stamps, euros[at], strict=True)]
    path.write_text("\n".join(["time,duck", *rows]) + "\n")
    return str(path)


def settings(path, microgrid, **sections):
    site = {
        "preset": "duck", "capped_power_w": CAPPED_W, "capped_speed": SPEED,
        "microgrid": microgrid, "power_from": "nvml", "price_eur_per_kwh": 0.3,
    }  # fmt: skip
    body = json.loads(configuration.dump(experiment()))
    body["fleet"]["power_stale_after_wall_s"] = 90.0  # ticks may lie a minute apart
    body["energy"]["price"] = {"source": "csv", "path": write_prices(path / "prices.csv")}
    body |= {
        "sites": {"duck": site},
        "policy": {"cap_below_g_per_kwh": 200.0},
        "run": {"duration_s": 6 * HOUR},
        "rounds": {"length_s": 3 * HOUR, "max_steps": 10**5, "grace_wall_s": 20.0},
    }
    return configuration.parse(body | sections, "test")


def play(path, microgrid, restarts=(), real_w=REAL_W, grid=GRID, **sections) -> Virtual:
    heard = Measuring(real_w)

    def now():
        return T0 if heard.run is None else heard.run.t

    virtual = Virtual(
        path, settings(path, microgrid, **sections), steps_per_epoch=10**6,
        traces={"duck": grid}, power=lambda: [SiteWatts(heard, now)],
    )  # fmt: skip
    heard.run = virtual
    virtual.until(T0 + 7 * HOUR, [(T0 + at_h * HOUR, Virtual.restart) for at_h in restarts])
    virtual.close()
    assert virtual.loop.finished
    return virtual


def failing(virtual) -> dict[str, str]:
    checks = verify(virtual.folder, recompute_tokens=False)
    return {check.name: check.detail for check in checks if check.passed is False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return play(tmp_path_factory.mktemp("together"), STRONG)


def test_measured_watts_are_the_load_that_sun_battery_and_grid_carry(run):
    assert failing(run) == {}
    found: dict[str, set[float]] = {}
    for row in run.folder.read_power():
        segment, flow = row.segment, row.segment.flow
        assert flow is not None
        load_w = flow.solar_w + flow.battery_w + flow.grid_w - flow.grid_charge_w
        assert load_w == pytest.approx(segment.power_w, abs=0.01)
        if segment.power_from == "nvml":
            found.setdefault(segment.phase, set()).add(segment.power_w)
    assert 1700.0 in found["training"]
    assert REAL_CAPPED_W in found["capped"]
    assert 200.0 in found["provisioning"]


def test_only_what_the_grid_gave_is_paid_at_the_price_of_its_hour(run):
    total = run.loop.meter.ledger.total()
    rows = run.folder.read_power()
    euros = sum(
        row.grid_power_w * (row.segment.end - row.segment.start) / J_PER_KWH
        * (row.segment.price_eur_per_kwh or 0.0)
        for row in rows
    )  # fmt: skip
    assert {row.segment.price_eur_per_kwh for row in rows} == {euro for _, euro in PRICES}
    assert total.cost_eur == pytest.approx(euros, rel=1e-6)
    assert 0.0 < total.grid_j < 0.6 * total.energy_j
    assert total.battery_j / J_PER_KWH == pytest.approx(4.5, abs=0.1)
    (numbers,) = summarise(run.folder)["policies"].values()
    assert numbers["microgrids"]["duck"]["battery_kwh"] == pytest.approx(total.battery_j / 3.6e6)


def test_a_killed_coordinator_changes_nothing_of_that(run, tmp_path):
    again = play(tmp_path, STRONG, restarts=(0.7, 2.5))
    assert failing(again) == {}
    left, right = run.loop.meter.ledger.total(), again.loop.meter.ledger.total()
    assert right.battery_j == pytest.approx(left.battery_j, rel=0.03)
    assert right.cost_eur == pytest.approx(left.cost_eur, rel=0.1)


def test_training_that_takes_more_than_declared_is_not_carried_by_what_was_declared(tmp_path):
    """The battery gives 2,100 W: enough for the 2,024 W that were declared, not for 2,400 W."""
    some = STRONG | {"battery_c_rate": 0.42}
    real_w = REAL_W | {Phase.TRAINING: 2400.0}
    virtual = play(tmp_path, some, real_w=real_w, grid=trace((0, 400)))
    assert failing(virtual) == {}
    ledger = virtual.loop.meter.ledger
    training, capped = ledger.total(phase=Phase.TRAINING), ledger.total(phase=Phase.CAPPED)
    assert training.grid_j < 300.0 * 400.0, "until it was measured"
    assert capped.battery_j > 0.9 * capped.energy_j > 0.0


def test_a_budget_in_euros_ends_with_what_the_grid_cost(tmp_path):
    policy = {"kind": "budget", "max_eur": 0.1, "cap_below_g_per_kwh": 200.0}
    virtual = play(tmp_path, WEAK, policy=policy)
    assert failing(virtual) == {}
    assert virtual.loop.meter.ledger.total().cost_eur == pytest.approx(0.1, abs=0.02)


def test_a_plan_has_prices_and_microgrids_together(tmp_path):
    asked = settings(tmp_path, STRONG)
    found = compare(
        asked, {"duck": GRID}, T0, ["threshold-capped"], sourcing.price_traces(asked),
        wiring.microgrids(asked, T0),
    )  # fmt: skip
    (row,) = found.rows
    energy = row.outcome.energy
    assert energy.battery_j > 0.0
    assert 0.10 <= energy.cost_eur / (energy.grid_j / J_PER_KWH) <= 0.50
    assert any(note.startswith("electricity: threshold-capped") for note in found.notes)


def shorten(virtual, columns) -> None:
    """The folder as it was when power.csv had so many columns."""
    path = virtual.folder.series / "power.csv"
    with path.open(newline="") as file:
        rows = [row[:columns] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.mark.parametrize("columns", [7, 12])
def test_a_folder_from_before_is_read_and_gone_on_with_as_it_is(tmp_path, columns):
    microgrid = STRONG if columns == 12 else None
    site = {"preset": "duck", "microgrid": microgrid}
    body = json.loads(configuration.dump(experiment()))
    body |= {"sites": {"duck": site}, "run": {"duration_s": 4 * HOUR}}
    virtual = Virtual(
        tmp_path, configuration.parse(body, "test"), steps_per_epoch=10**6, traces={"duck": GRID}
    )
    virtual.until(T0 + 2 * HOUR)
    virtual.close()
    shorten(virtual, columns)
    virtual.restart()
    virtual.finish()
    virtual.close()
    header = (virtual.folder.series / "power.csv").read_text().splitlines()[0]
    assert header == ",".join(POWER[:columns])
    assert failing(virtual) == {}
