"""Capped sites with batteries and suns: what own power carries, at which power; it adds up."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from tests.test_capped import CAPPED_W, CAPS, HOUR, NODE, SPEED, T0, trace
from tests.virtual import TOKENS_PER_STEP, Virtual, experiment, rewrite_power
from uncurtail import config as configuration
from uncurtail import wiring
from uncurtail.core.carried import carried
from uncurtail.core.events import iso, unix
from uncurtail.core.fleet import Phase, worked_s
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.microgrid import Carried, Microgrid, MicrogridSection, Own
from uncurtail.core.policy import Deadline, Span, Threshold, Verdict, View, decide
from uncurtail.plan.compare import SLOT_S, bound
from uncurtail.plan.oracle import Problem, solve
from uncurtail.plan.simulate import Scenario, simulate
from uncurtail.report.rundata import RunData
from uncurtail.verify import verify

# It gives 1,400 W: enough for capped training, too little for all of it.
WEAK = {"battery_wh": 5000.0, "battery_initial_soc": 1.0, "battery_c_rate": 0.28}
STRONG = WEAK | {"battery_c_rate": 1.0}
DARK = trace((0, math.nan))
DIRTY = trace((0, 400))
DIM = trace((0, 150))


def kwh(joules: float) -> float:
    return joules / J_PER_KWH


# -- the rule --

KNOWN = View(T0, 150.0, False, T0, T0 - HOUR)
LITTLE = Carried(T0 + 200.0, capped=True)


@pytest.mark.parametrize(
    ("changes", "decision"),
    [
        pytest.param({}, (Verdict.CAPPED, T0 + 200.0), id="what-carries-capped-power-does"),
        pytest.param({"value": None}, (Verdict.CAPPED, T0 + 200.0), id="whatever-the-grid-is"),
        pytest.param({"window_open": True}, (Verdict.TRAIN, math.inf), id="a-full-one-is-better"),
        pytest.param(
            {"window_open": True, "dim": True}, (Verdict.CAPPED, T0 + 200.0), id="a-dim-one-is-not"
        ),
        pytest.param(
            {"window_open": True, "dim": True, "carried": Carried(T0 + 99.0)},
            (Verdict.TRAIN, T0 + 99.0), id="full-power-of-its-own-in-a-dim-window",
        ),
    ],
)  # fmt: skip
def test_own_power_gives_what_it_carries_and_the_grid_may_give_more(changes, decision):
    view = KNOWN._replace(**{"carried": LITTLE, **changes})
    assert decide(CAPS, NODE, view) == decision


def test_a_plan_that_wants_full_power_soon_is_asked_again_then():
    policy = Deadline(deadline_s=HOUR, cap_below_g_per_kwh=200.0)
    span = Span(T0 + 60.0, T0 + HOUR, Verdict.TRAIN)
    decision = decide(policy, NODE, KNOWN._replace(carried=LITTLE, spans=(span,)))
    assert decision == (Verdict.CAPPED, T0 + 60.0)


SECTION = MicrogridSection.model_validate(WEAK)


def carries(lasts_s, capped_s, *, costs=NODE, up=True, before=None):
    own = Own(0.5, 0.0, lasts_s, capped_s)
    found = carried(SECTION, costs, own, 0.0, up=up, before=before)
    return found if found is None else ("capped" if found.capped else "full", found.until)


def test_each_power_has_its_own_hysteresis():
    assert carries(900.0, 2000.0) == ("full", 300.0)
    assert carries(899.0, 2000.0) == ("capped", 300.0)
    assert carries(899.0, 899.0) is None
    assert carries(200.0, 400.0, before=Carried(0.0)) == ("full", 140.0)
    assert carries(60.0, 200.0, before=Carried(0.0)) is None, "not for what full power left over"
    assert carries(899.0, 200.0, before=Carried(0.0, capped=True)) == ("capped", 140.0)
    assert carries(900.0, 2000.0, before=Carried(0.0, capped=True)) == ("full", 300.0)
    assert carries(899.0, 9000.0, costs=NODE._replace(capped=None)) is None


def test_a_capped_start_must_pay_by_the_training_that_it_buys():
    """300 s at 468 W against 3 % of 1,300 W."""
    pays_s = 300.0 + 300.0 * 468.0 / (0.03 * CAPPED_W)
    assert carries(0.0, pays_s - 1.0, up=False) is None
    assert carries(0.0, pays_s, up=False) == ("capped", 300.0)


# -- in virtual time --


def game(values, microgrid, policy=CAPS, solar=None, **changes) -> Scenario:
    section = MicrogridSection.model_validate(microgrid)
    asked = Scenario(
        policy, {"a": NODE}, {"a": values}, T0, T0 + 12 * HOUR,
        microgrids={"a": Microgrid(section, solar)},
    )  # fmt: skip
    return replace(asked, **changes)


@pytest.mark.parametrize("values", [DARK, DIRTY], ids=["dark", "dirty"])
def test_a_battery_that_carries_capped_power_alone_trains_capped_for_nothing(values):
    outcome = simulate(game(values, WEAK))
    (site,) = outcome.sites.values()
    assert [phase for phase, _, _ in site.phases] == [Phase.PROVISIONING, Phase.CAPPED]
    capped_s = site.phases[1][2] - site.phases[1][1]
    held_j = 0.9 * 5000.0 * 3600.0 - 300.0 * 468.0
    assert capped_s == pytest.approx(held_j / CAPPED_W - 60.0, abs=1.0)
    assert outcome.train_site_s == site.train_s == pytest.approx(SPEED * capped_s)
    energy = outcome.energy
    assert energy.energy_j == pytest.approx(300.0 * 468.0 + CAPPED_W * capped_s)
    assert energy.battery_j == pytest.approx(energy.energy_j)
    assert (energy.emissions_g, energy.unpriced_j) == (0.0, 0.0)


@pytest.mark.parametrize(
    "changes",
    [{"policy": Threshold()}, {"sites": {"a": NODE._replace(capped=None)}}],
    ids=["the-policy-has-no-cap", "the-site-has-none"],
)
def test_without_a_cap_the_same_battery_carries_nobody(changes):
    assert simulate(game(DIRTY, WEAK, **changes)).train_site_s == 0.0


def test_in_a_dim_window_a_site_trains_at_full_power_while_its_charge_allows_it():
    outcome = simulate(game(DIM, STRONG))
    (site,) = outcome.sites.values()
    assert [phase for phase, _, _ in site.phases] == [
        Phase.PROVISIONING, Phase.TRAINING, Phase.CAPPED,
    ]  # fmt: skip
    full_s, capped_s = (end - start for _, start, end in site.phases[1:])
    assert full_s == pytest.approx((4500.0 * 3600.0 - 300.0 * 468.0) / 2024.0 - 60.0, abs=1.0)
    energy = outcome.energy
    assert kwh(energy.battery_j) == pytest.approx(4.5), "what is left helps the capped load"
    assert energy.energy_j == pytest.approx(300.0 * 468.0 + 2024.0 * full_s + CAPPED_W * capped_s)
    assert energy.emissions_g == pytest.approx(kwh(energy.energy_j - energy.battery_j) * 150.0)


def test_two_that_train_together_idle_the_same_share_and_it_is_counted_once():
    values = {"a": DIRTY, "b": trace((0, 40))}
    asked = game(
        DIRTY, WEAK, sites={"a": NODE, "b": NODE}, traces=values, until=T0 + HOUR,
        round_overhead_share=0.25,
    )  # fmt: skip
    outcome = simulate(asked)
    shared_s = HOUR - 300.0
    load_j = 300.0 * 468.0 + (0.75 * CAPPED_W + 0.25 * 468.0) * shared_s
    assert outcome.sites["a"].energy.battery_j == pytest.approx(load_j)
    assert outcome.sites["a"].train_s == pytest.approx(0.75 * SPEED * shared_s)


def test_where_not_all_may_be_up_one_that_carries_itself_goes_before_one_in_a_window():
    values = {"b": trace((0, 90)), "a": DARK}
    sites = {"b": NODE, "a": NODE}
    asked = game(DARK, WEAK, sites=sites, traces=values, until=T0 + HOUR, max_sites=1)
    outcome = simulate(asked)
    assert (outcome.sites["a"].provisions, outcome.sites["b"].provisions) == (1, 0)


GAMES = {
    "weak": (trace((0, 400), (2, 150), (4, 50), (5, 400)), WEAK),
    "strong": (trace((0, 400), (2, 150), (4, 50), (5, 400)), STRONG),
    "refilled": (trace((0, 50), (3, 400)), WEAK | {"charge_from_curtailed": True}),
    "dark": (DARK, WEAK),
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("share", [0.0, 0.25], ids=["alone", "shared"])
def test_the_oracle_is_below_every_game(name, share):
    """The work is what the game did in whole slots; the rest only costs it more."""
    values, microgrid = GAMES[name]
    asked = game(values, microgrid, until=T0 + 8 * HOUR, round_overhead_share=share)
    if share:
        asked = replace(
            asked, sites={"a": NODE, "b": NODE}, traces={"a": values, "b": trace((0, 150))}
        )
    outcome = simulate(asked)
    played_kg = outcome.energy.emissions_g / 1000.0
    assert any(phase is Phase.CAPPED for phase, _, _ in outcome.sites["a"].phases)
    slots = sum(
        {Phase.TRAINING: 1.0, Phase.CAPPED: SPEED}[phase]
        * max(0.0, (end - T0) // SLOT_S - -((T0 - begin) // SLOT_S))
        for site in outcome.sites.values()
        for phase, begin, end in site.phases
        if phase in (Phase.TRAINING, Phase.CAPPED)
    )
    assert slots > 10
    work_s = slots * SLOT_S * (1.0 - share)
    best = solve(
        Problem(
            asked.sites, asked.traces, T0, 8 * HOUR, work_s, share, microgrids=asked.microgrids
        ),
        10.0,
    )  # fmt: skip
    assert best is not None
    assert best.proven_kg <= played_kg + 1e-9


def test_the_oracle_lets_a_battery_carry_capped_slots():
    """On a dark grid nothing else can be: 2.4 capped hours, and not one at full power."""
    asked = game(DARK, WEAK, until=T0 + 4 * HOUR)
    outcome = simulate(asked)
    best = bound(asked, outcome, 10.0)
    assert best is not None
    assert best.emissions_kg == pytest.approx(0.0, abs=1e-9)
    assert bound(replace(asked, sites={"a": NODE._replace(capped=None)}), outcome, 10.0) is None


# -- live --


def write_sun(path: Path, *steps: tuple[float, float]) -> str:
    """(hours from the start, W), each until the next; every ten minutes."""
    hours, watts = (np.array(column, dtype=float) for column in zip(*steps, strict=True))
    times = T0 + 607.0 * np.arange(-1, 100)
    at = np.maximum(np.searchsorted(T0 + hours * HOUR, times, side="right") - 1, 0)
    stamps = [stamp.isoformat() for stamp in pd.to_datetime(times, unit="s", utc=True)]
    rows = [f"{stamp},{w}" for stamp, w in zip(stamps, watts[at], strict=True)]
    path.write_text("\n".join(["time,roof", *rows]) + "\n")
    return str(path)


def played(tmp_path, values, microgrid, hours=6.0, restarts=(), policy=None) -> Virtual:
    site = {
        "preset": "duck", "capped_power_w": CAPPED_W, "capped_speed": SPEED, "microgrid": microgrid,
    }  # fmt: skip
    body = json.loads(configuration.dump(experiment()))
    body |= {
        "sites": {"duck": site},
        "policy": policy or {"cap_below_g_per_kwh": 200.0},
        "run": {"duration_s": hours * HOUR},
        "rounds": {"length_s": 3 * HOUR, "max_steps": 10**5, "grace_wall_s": 20.0},
    }
    settings = configuration.parse(body, "test")
    virtual = Virtual(tmp_path, settings, steps_per_epoch=10**6, traces={"duck": values})
    faults = [(T0 + at_h * HOUR, Virtual.restart) for at_h in restarts]
    virtual.until(T0 + (hours + 1.0) * HOUR, faults)
    virtual.close()
    assert virtual.loop.finished
    return virtual


def failing(virtual) -> dict[str, str]:
    return {c.name: c.detail for c in verify(virtual.folder) if c.passed is False}


def phases(virtual) -> list[str]:
    """In order, each once until another comes."""
    found = [segment.phase for segment in RunData(virtual.folder).segments]
    return [phase for n, phase in enumerate(found) if n == 0 or phase != found[n - 1]]


MIXED = trace((0, 400), (2, 150), (3, 40), (4, 400))


@pytest.mark.parametrize("microgrid", [WEAK, STRONG], ids=["weak", "strong"])
def test_the_loop_and_virtual_time_agree_and_everything_adds_up(tmp_path, microgrid):
    virtual = played(tmp_path, MIXED, microgrid)
    assert failing(virtual) == {}
    ledger = virtual.loop.meter.ledger
    capped, total = ledger.total(phase=Phase.CAPPED), ledger.total()
    assert capped.duration_s > 0.5 * HOUR
    assert capped.energy_j == pytest.approx(CAPPED_W * capped.duration_s)
    given_j = total.solar_j + total.battery_j + total.grid_j - total.stored_j
    assert total.energy_j == pytest.approx(given_j)
    assert total.battery_j > 0.0
    settings = virtual.settings
    outcome = simulate(
        Scenario(
            settings.policy, {"duck": settings.sites["duck"].costs()}, virtual.traces or {}, T0,
            T0 + 6 * HOUR, microgrids=wiring.microgrids(settings, T0),
        )
    )  # fmt: skip
    planned = outcome.energy
    trained_s = worked_s(ledger, {"duck": SPEED})
    assert trained_s == pytest.approx(outcome.train_site_s, rel=0.02)
    assert total.energy_j == pytest.approx(planned.energy_j, rel=0.02)
    assert total.battery_j == pytest.approx(planned.battery_j, rel=0.02)
    assert total.emissions_g == pytest.approx(planned.emissions_g, rel=0.05)
    steps = virtual.loop.rounds.head.tokens / TOKENS_PER_STEP
    assert steps == pytest.approx(0.05 * trained_s, rel=0.02)


def test_on_a_dark_grid_a_weak_battery_trains_capped_and_nothing_comes_from_the_grid(tmp_path):
    virtual = played(tmp_path, DARK, WEAK)
    assert failing(virtual) == {}
    ledger = virtual.loop.meter.ledger
    capped = ledger.total(phase=Phase.CAPPED)
    assert capped.duration_s > 3 * HOUR
    assert capped.grid_j <= 1e-3 * capped.energy_j
    assert ledger.total(phase=Phase.TRAINING).duration_s == 0.0


@pytest.mark.parametrize("values", [DARK, DIM], ids=["dark", "dim"])
def test_when_the_sun_sinks_below_full_power_a_site_goes_on_capped(tmp_path, values):
    sun = write_sun(tmp_path / "sun.csv", (0, 2500.0), (2, 1500.0), (4, 0.0))
    microgrid = {"solar_peak_w": 3000.0, "solar_path": sun, "solar_column": "roof"}
    virtual = played(tmp_path, values, microgrid)
    order = ["provisioning", "idle", "training", "capped"]
    assert [phase for phase in phases(virtual) if phase != "released"][:4] == order
    assert failing(virtual) == {}


@pytest.mark.parametrize(("seconds", "passes"), [(20.0, True), (40.0, False)], ids=str)
def test_the_step_under_way_is_finished_with_the_grid_s_help_and_no_other(
    tmp_path, seconds, passes
):
    """Simulated sites slow down in mid-step; real ones behind it, and draw full power until then.

    Capped, its steps take 27 s.
    """
    sun = write_sun(tmp_path / "sun.csv", (0, 2500.0), (2, 1500.0))
    microgrid = {"solar_peak_w": 3000.0, "solar_path": sun, "solar_column": "roof"}
    virtual = played(tmp_path, DARK, microgrid, hours=3.0)
    assert failing(virtual) == {}

    def later(rows):
        index = next(n for n, row in enumerate(rows) if row["phase"] == "capped")
        change = iso(unix(rows[index]["start"]) + seconds)
        full = {"phase": "training", "end": change, "power_w": "2024", "grid_power_w": "524"}
        rows.insert(index, rows[index] | full | {"solar_w": "1500"})
        rows[index + 1] |= {"start": change}

    rewrite_power(virtual.folder, later)
    failed = failing(virtual)
    assert ("only-in-windows" not in failed) is ("known-power" not in failed) is passes


def test_a_coordinator_that_takes_over_lets_a_site_go_on_capped_on_its_own_power(tmp_path):
    """After three hours the charge lasts too short to be counted on anew."""
    whole = played(tmp_path / "whole", DARK, WEAK)
    again = played(tmp_path / "again", DARK, WEAK, restarts=(1.0, 3.4))
    left = whole.loop.meter.ledger.total(phase=Phase.CAPPED).duration_s
    right = again.loop.meter.ledger.total(phase=Phase.CAPPED).duration_s
    assert right == pytest.approx(left, abs=180.0)
    assert failing(again) == {}


def test_capped_training_on_the_grid_beyond_a_window_fails_though_there_is_a_battery(tmp_path):
    virtual = played(tmp_path, DARK, WEAK)

    def swap(rows):
        for row in rows:
            row["battery_w"], row["grid_power_w"] = "0", row["power_w"]

    rewrite_power(virtual.folder, swap)
    failed = failing(virtual)
    assert {"only-in-windows", "own-power"} <= failed.keys()
    assert "trains capped outside its windows" in failed["only-in-windows"]


def test_full_power_where_only_capped_power_was_carried_fails(tmp_path):
    virtual = played(tmp_path, DARK, WEAK)

    def raised(rows):
        for row in rows:
            if row["phase"] == "capped":
                row |= {"phase": "training", "power_w": "2024", "grid_power_w": "724"}

    rewrite_power(virtual.folder, raised)
    failed = failing(virtual)
    assert any("trains on unknown power" in told for told in failed.values())
    assert "trains outside its windows" in failed["only-in-windows"]
