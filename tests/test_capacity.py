"""A cap on sites: the same ones wait and the same go first, in a real run and in virtual time."""

import json
import shutil
from functools import partial
from typing import Any

import pytest

from tests.published import published
from tests.virtual import START, Virtual, experiment
from uncurtail import config as configuration
from uncurtail import wiring
from uncurtail.config import ConfigError
from uncurtail.core.capacity import admitted
from uncurtail.core.events import SitePhase, SiteProvisioned, SiteReleased, iso, unix
from uncurtail.core.fleet import Phase, SiteState, kept_out
from uncurtail.core.policy import Verdict
from uncurtail.plan.compare import scenario, variants
from uncurtail.plan.simulate import Scenario, simulate
from uncurtail.runfolder import RunFolder
from uncurtail.verify import verify

T0 = unix(START)
HOUR = 3600.0


@pytest.mark.parametrize(
    ("wanting", "num_up", "max_sites", "chosen"),
    [
        pytest.param({"a": 9.0, "b": 5.0}, 0, 1, {"b"}, id="the-cleanest"),
        pytest.param({"a": 5.0, "b": 5.0}, 0, 1, {"a"}, id="equal-in-order"),
        pytest.param({"a": None, "b": 90.0}, 0, 1, {"b"}, id="unknown-is-last"),
        pytest.param({"a": None, "b": None}, 0, 1, {"a"}, id="all-unknown"),
        pytest.param({"a": 9.0, "b": 5.0}, 1, 2, {"b"}, id="one-is-up"),
        pytest.param({"a": 9.0, "b": 5.0}, 2, 2, set(), id="full"),
        pytest.param({"a": 9.0}, 3, 2, set(), id="more-than-full"),
        pytest.param({"a": 9.0, "b": 5.0}, 7, None, {"a", "b"}, id="no-cap"),
        pytest.param({}, 0, 1, set(), id="nobody"),
    ],
)
def test_the_cleanest_goes_first_as_long_as_there_is_room(wanting, num_up, max_sites, chosen):
    assert admitted(wanting, num_up, max_sites) == chosen


def test_a_site_that_cannot_start_now_keeps_nobody_out_and_one_that_lingers_on_does():
    states = {"a": SiteState(), "b": SiteState(), "c": SiteState()}
    wanted: dict[str, tuple[Verdict, float | None]] = {
        "a": (Verdict.TRAIN, 5.0), "b": (Verdict.READY, 9.0), "c": (Verdict.REST, 1.0)
    }  # fmt: skip
    assert kept_out(wanted, states, {}, (1, 100.0)) == {"b"}
    failing = {**states, "a": SiteState(retry_wall=200.0)}
    assert kept_out(wanted, failing, {}, (1, 100.0)) == frozenset()
    stray = {"c": frozenset({3})}
    assert kept_out(wanted, states, stray, (1, 100.0)) == {"a", "b"}
    draining = {**states, "c": SiteState(Phase.DRAINING)}
    assert kept_out(wanted, draining, {}, (1, 100.0)) == {"a", "b"}
    assert kept_out(wanted, states, {}, (None, 100.0)) == frozenset()


trace = partial(published, T0)


# b opens beside a and is cleaner; c waits for a; a's second window finds two up.
TRACES = {
    "a": trace((0, 400), (1, 60), (4, 400), (7, 50), (12, 400)),
    "b": trace((0, 400), (1, 20), (6, 400), (9, 30), (14, 400)),
    "c": trace((0, 400), (2, 5), (10, 400), (13, 70), (20, 400)),
}


def settings(max_sites, policy, **sections):
    body = json.loads(configuration.dump(experiment()))
    sites = {name: {"preset": "duck"} for name in TRACES}
    rounds = {**body["rounds"], "max_steps": 100_000, "length_s": 4 * HOUR}
    changes = {"fleet": {"max_sites": max_sites}, "run": {"duration_s": 23 * HOUR}}
    return configuration.parse(
        {**body, "sites": sites, "policy": policy, "rounds": rounds, **changes, **sections}, "test"
    )


def live(path, chosen, traces=None, faults=()):
    virtual = Virtual(path, chosen, steps_per_epoch=10**6, traces=traces or TRACES)
    virtual.until(T0 + 24 * HOUR, [(T0 + h * HOUR, fault) for h, fault in faults])
    virtual.close()
    return virtual


def starts_of(virtual):
    events = virtual.folder.read_events()
    return sorted((e.t, e.site) for e in events if isinstance(e, SiteProvisioned))


def simulated(chosen, traces=None):
    sites = {name: site.costs() for name, site in chosen.sites.items()}
    game = Scenario(
        chosen.policy, sites, traces or TRACES, T0, T0 + 23 * HOUR,
        max_sites=chosen.fleet.max_sites,
    )  # fmt: skip
    outcome = simulate(game)
    found = []
    for name, site in outcome.sites.items():
        ended = None
        for _, start, end in site.phases:
            if start != ended:
                found.append((start, name))
            ended = end
    return sorted(found)


def most_at_once(virtual):
    up, most = 0, 0
    for event in virtual.folder.read_events():
        if isinstance(event, SiteProvisioned):
            up += 1
        elif isinstance(event, SiteReleased):
            up -= 1
        most = max(most, up)
    return most


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"kind": "threshold"}, id="threshold"),
        pytest.param({"kind": "threshold", "linger_s": 900.0}, id="lingers"),
        pytest.param({"kind": "lookahead"}, id="lookahead"),
        pytest.param({"kind": "always"}, id="always"),
    ],
)
@pytest.mark.parametrize("max_sites", [1, 2, 3])
def test_the_loop_and_the_simulator_start_the_same_sites_at_the_same_times(
    tmp_path, policy, max_sites
):
    """A site that goes finishes its step and hands in its work first: its place is free later."""
    chosen = settings(max_sites, policy)
    virtual = live(tmp_path, chosen)
    starts, planned = starts_of(virtual), simulated(chosen)
    assert [site for _, site in starts] == [site for _, site in planned]
    for (t, _), (when, _) in zip(starts, planned, strict=True):
        assert when - 1.0 <= t <= when + 90.0
    assert most_at_once(virtual) <= max_sites
    checks = {check.name: check.passed for check in verify(virtual.folder, recompute_tokens=False)}
    assert checks["max-sites"] is True
    assert False not in checks.values()


def test_who_goes_first_is_the_cleanest_and_who_waits_gets_its_turn():
    planned = simulated(settings(1, {"kind": "threshold"}))
    hours = [(round((t - T0) / HOUR, 2), site) for t, site in planned]
    assert hours == [(1.0, "b"), (6.0, "c"), (10.0, "b"), (14.0, "c")]


def test_without_a_cap_nothing_waits(tmp_path):
    chosen = settings(None, {"kind": "threshold"})
    virtual = live(tmp_path, chosen)
    assert [site for _, site in starts_of(virtual)] == [site for _, site in simulated(chosen)]
    assert most_at_once(virtual) == 3
    checks = {check.name: check.passed for check in verify(virtual.folder, recompute_tokens=False)}
    assert checks["max-sites"] is None


def test_a_plan_to_a_deadline_keeps_to_the_cap_in_a_run(tmp_path):
    policy = {"kind": "deadline", "deadline_s": 20 * HOUR, "site_hours": 16.0}
    tokens = int(16 * HOUR * 0.05) * 2048
    chosen = settings(1, policy, train={"budget_tokens": tokens, "batch_sequences": 8})
    virtual = live(tmp_path, chosen)
    assert most_at_once(virtual) == 1
    assert virtual.loop.rounds.head.tokens > 0.7 * tokens


def test_a_cap_holds_while_sites_die_and_coordinators_are_killed(tmp_path):
    chosen = settings(2, {"kind": "always"})
    faults: list[Any] = [
        (2.0 + n, lambda v, site="abc"[n % 3]: v.sites.kill(site)) for n in range(12)
    ]
    faults += [(5.5, Virtual.restart), (9.01, Virtual.restart)]
    virtual = live(tmp_path, chosen, faults=sorted(faults, key=lambda fault: fault[0]))
    assert most_at_once(virtual) == 2
    checks = {check.name: check.passed for check in verify(virtual.folder, recompute_tokens=False)}
    assert checks["max-sites"] is True


@pytest.fixture
def capped(tmp_path):
    """A run of two sites at once, whose config says so."""
    return live(tmp_path / "run", settings(2, {"kind": "threshold"})).folder


def failing(path):
    checks = verify(RunFolder(path), recompute_tokens=False)
    return {check.name: check.detail for check in checks if check.passed is False}


def test_more_sites_than_may_be_fail_by_name(capped, tmp_path):
    copied = tmp_path / capped.path.name
    shutil.copytree(capped.path, copied)
    assert failing(copied) == {}
    body = json.loads((copied / "resolved.json").read_text())
    body["fleet"]["max_sites"] = 1
    (copied / "resolved.json").write_text(json.dumps(body))
    assert list(failing(copied)) == ["max-sites"]
    assert "2 sites are up at" in failing(copied)["max-sites"]


def test_a_site_that_came_too_early_fails_by_name_in_both_records(capped, tmp_path):
    copied = tmp_path / capped.path.name
    shutil.copytree(capped.path, copied)
    events = capped.read_events()
    third = next(e for e in events if isinstance(e, SiteProvisioned) and e.site == "c")
    assert third.t >= T0 + 4 * HOUR, "it waited for another to go"
    phase = next(e for e in events if isinstance(e, SitePhase) and (e.t, e.site) == (third.t, "c"))
    assert phase.phase == Phase.PROVISIONING
    path = copied / "events.jsonl"
    early = iso(T0 + 1.5 * HOUR)
    lines = path.read_text().splitlines()
    moved = [
        line.replace(iso(third.t), early)
        if iso(third.t) in line and '"site": "c"' in line
        else line
        for line in lines
    ]
    path.write_text("\n".join(moved) + "\n")
    assert "by events.jsonl, and fleet.max_sites is 2" in failing(copied)["max-sites"]


def test_the_plan_takes_the_fleets_cap_and_its_old_name_is_the_same_setting():
    body = json.loads(configuration.dump(experiment()))
    assert "max_sites" not in body["plan"]
    old = configuration.parse({**body, "plan": {"max_sites": 2}}, "test")
    assert old.fleet.max_sites == 2
    same = {**body["fleet"], "max_sites": 2}
    both = configuration.parse({**body, "fleet": same, "plan": {"max_sites": 2}}, "test")
    assert both.fleet.max_sites == 2
    none = configuration.parse({**body, "plan": {"max_sites": None}}, "test")
    assert none.fleet.max_sites is None
    with pytest.raises(ConfigError, match=r"2 and fleet.max_sites 3 are one setting"):
        configuration.parse({**body, "fleet": {"max_sites": 3}, "plan": {"max_sites": 2}}, "test")
    with pytest.raises(ConfigError, match=r"fleet.max_sites = 0"):
        configuration.parse({**body, "fleet": {"max_sites": 0}}, "test")
    traces = wiring.traces(old, T0)
    assert scenario(old, traces, T0, variants(old)["threshold"], 1.0).max_sites == 2
