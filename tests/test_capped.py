"""Power capping, the state between training and resting: on clean power that is not curtailed."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tests.published import published
from tests.virtual import START, TOKENS_PER_STEP, Virtual, experiment
from uncurtail import config as configuration
from uncurtail.config import ConfigError
from uncurtail.core.events import (
    Trouble,
    WindowCleared,
    WindowClosed,
    WindowDimmed,
    WindowOpened,
    unix,
)
from uncurtail.core.fleet import Phase, SiteSection, worked_s
from uncurtail.core.forecasts import perfect
from uncurtail.core.issues import Issues, Issuing
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.policy import (
    Always,
    Budget,
    Capped,
    Costs,
    Deadline,
    Lookahead,
    Span,
    Threshold,
    Verdict,
    View,
    at_site,
    decide,
    uncapped,
    window,
)
from uncurtail.core.signals import Reading
from uncurtail.plan.compare import bound, compare
from uncurtail.plan.simulate import Scenario, simulate
from uncurtail.report.gantt import draw_windows
from uncurtail.report.planned import Game, draw_game
from uncurtail.report.rundata import RunData
from uncurtail.verify import verify

HOUR = 3600.0
T0 = unix(START)
# Any numbers will do; these are not a measurement of a GPU.
CAPPED_W, SPEED = 1300.0, 0.75
NODE = Costs(2024.0, 468.0, 468.0, 300.0, Capped(CAPPED_W, SPEED))
PLAIN = NODE._replace(capped=None)
CAPS = Threshold(cap_below_g_per_kwh=200.0)
NOW = 1_000_000.0


trace = partial(published, T0)


# -- the policy --


def levels(policy, values) -> list[str]:
    """What each reading leaves the window at."""
    is_open = is_full = False
    found = []
    for value in values:
        reading = Reading("a", NOW, value)
        is_open = window(policy, reading, was_open=is_open, now=NOW)
        is_full = window(uncapped(policy), reading, was_open=is_full, now=NOW)
        found.append("full" if is_full else "dim" if is_open else "closed")
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([250, 200, 199.9], ["closed", "closed", "dim"], id="opens-dim-below-the-cap"),
        pytest.param([150, 220, 220.1], ["dim", "dim", "closed"], id="closes-above-the-cap-s-band"),
        pytest.param([50, 120, 120.1, 110], ["full", "full", "dim", "dim"], id="dims-and-stays-so"),
        pytest.param([150, 100, 99.9], ["dim", "dim", "full"], id="clears-below-enter"),
        pytest.param([50, 300, 110], ["full", "closed", "dim"], id="a-jump-closes-both"),
        pytest.param([50, None, 150], ["full", "closed", "dim"], id="unknown-closes-both"),
        pytest.param([150, math.nan], ["dim", "closed"], id="nan-is-not-dim"),
    ],
)
def test_a_window_has_two_levels_with_a_band_each(values, expected):
    assert levels(CAPS, values) == expected


def test_a_policy_without_a_cap_knows_one_level():
    assert levels(Threshold(), [50, 110, 130, 110]) == ["full", "full", "closed", "closed"]


def view(**changes) -> View:
    known = {"now": NOW, "value": 150.0, "window_open": True, "since": NOW, "up_since": None}
    return View(**{**known, **changes})


@pytest.mark.parametrize(
    ("policy", "changes", "verdict"),
    [
        pytest.param(CAPS, {"dim": True}, Verdict.CAPPED, id="dim"),
        pytest.param(CAPS, {}, Verdict.TRAIN, id="full"),
        pytest.param(CAPS, {"window_open": False}, Verdict.REST, id="closed"),
        pytest.param(CAPS, {"dim": True, "value": None}, Verdict.REST, id="unknown"),
        pytest.param(
            Threshold(cap_below_g_per_kwh=200.0, linger_s=600.0),
            {"window_open": False, "up_since": 0.0}, Verdict.CAPPED, id="lingers-capped",
        ),
        pytest.param(
            Threshold(linger_s=600.0),
            {"window_open": False, "up_since": 0.0}, Verdict.TRAIN, id="lingers-full-without-cap",
        ),
        pytest.param(
            Budget(cap_below_g_per_kwh=200.0, max_kg=1.0), {"dim": True}, Verdict.CAPPED,
            id="budget",
        ),
        pytest.param(
            Lookahead(cap_below_g_per_kwh=200.0), {"dim": True, "up_since": 0.0}, Verdict.CAPPED,
            id="lookahead",
        ),
        pytest.param(
            Deadline(deadline_s=HOUR), {"spans": (Span(0.0, 2 * NOW, Verdict.CAPPED),)},
            Verdict.CAPPED, id="planned",
        ),
        pytest.param(
            Deadline(deadline_s=HOUR),
            {"spans": (Span(0.0, 2 * NOW, Verdict.CAPPED),), "value": None},
            Verdict.HOLD, id="planned-on-what-became-unknown",
        ),
        pytest.param(
            Deadline(deadline_s=HOUR, cap_below_g_per_kwh=200.0),
            {"spans": (Span(0.0, 2 * NOW, Verdict.TRAIN),), "dim": True},
            Verdict.TRAIN, id="a-plan-says-itself-at-which-power",
        ),
    ],
)  # fmt: skip
def test_what_a_site_should_do_on_power_in_between(policy, changes, verdict):
    assert decide(policy, NODE, view(**changes)).verdict is verdict


spans = st.lists(
    st.builds(
        Span, st.floats(NOW - 2.0, NOW), st.floats(NOW, NOW + 2.0), st.sampled_from(Verdict)
    ),
    max_size=2,
).map(tuple)  # fmt: skip


@given(
    st.sampled_from(
        [
            CAPS,
            Threshold(cap_below_g_per_kwh=200.0, linger_s=600.0, min_up_s=900.0),
            Lookahead(cap_below_g_per_kwh=300.0),
            Deadline(deadline_s=HOUR, cap_below_g_per_kwh=300.0),
        ]
    ),
    st.booleans(), st.booleans(), st.none() | st.floats(0.0, NOW), st.none() | spans, st.booleans(),
)  # fmt: skip
def test_unknown_power_is_never_trained_on_capped_or_not(
    policy, is_open, dim, up_since, planned, told
):
    forecast = perfect(trace((0, 50)), "a", T0, HOUR) if told else None
    known = view(
        value=None, window_open=is_open, dim=dim, up_since=up_since, forecast=forecast,
        spans=planned,
    )  # fmt: skip
    assert decide(policy, NODE, known).verdict not in (Verdict.TRAIN, Verdict.CAPPED)


def test_a_site_that_declares_no_capped_power_runs_by_the_same_policy_without_a_cap():
    assert at_site(CAPS, NODE) is CAPS
    assert at_site(CAPS, PLAIN) == Threshold()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policy": {"cap_below_g_per_kwh": 100.0}}, "nothing lies in between"),
        ({"policy": {"kind": "always", "cap_below_g_per_kwh": 200.0}}, "leave out cap_below"),
        ({"policy": {"cap_below_g_per_kwh": 200.0}}, "policy.cap_below_g_per_kwh caps nothing"),
        (
            {"plan": {"policies": {"x": {"policy": {"cap_below_g_per_kwh": 200.0}}}}},
            "plan.policies.x.policy.cap_below_g_per_kwh caps nothing",
        ),
        ({"sites": {"duck": {"preset": "duck", "capped_power_w": 9.0}}}, "go together"),
        (
            {"sites": {"duck": {"preset": "duck", "capped_power_w": 3e3, "capped_speed": 1.0}}},
            "capped_power_w is above train_power_w",
        ),
        (
            {"sites": {"duck": {"preset": "duck", "capped_gpu_limit_w": 250.0}}},
            "capped_gpu_limit_w needs capped_power_w, and GPUs",
        ),
    ],
)
def test_a_cap_that_makes_no_sense_is_refused_with_the_remedy(changes, why):
    with pytest.raises(ConfigError, match=why):
        experiment(**changes)


# -- planned --


def game(traces, policy, costs=NODE, **changes):
    sites = dict.fromkeys(traces, costs)
    body = {"policy": policy, "sites": sites, "traces": traces, "start": T0, "until": T0 + 86400.0}
    return Scenario(**{**body, **changes})


DIM = {"a": trace((0, 40), (2, 150), (5, 400), (8, 40))}


def test_on_a_dim_stretch_a_capped_policy_goes_on_and_finishes_earlier():
    """Two clean hours, three dim ones, three dirty ones, then clean: four hours of work."""
    plain = simulate(game(DIM, Threshold(), train_site_s=4 * HOUR))
    outcome = simulate(game(DIM, CAPS, train_site_s=4 * HOUR))
    assert plain.completed
    assert outcome.completed
    first_s = 2 * HOUR - 300.0
    capped_s = (4 * HOUR - first_s) / SPEED
    assert outcome.end == pytest.approx(T0 + 2 * HOUR + capped_s)
    assert plain.end == pytest.approx(T0 + 8 * HOUR + 300.0 + 4 * HOUR - first_s)
    (site,) = outcome.sites.values()
    assert [phase for phase, _, _ in site.phases] == [
        Phase.PROVISIONING, Phase.TRAINING, Phase.CAPPED,
    ]  # fmt: skip
    energy = outcome.energy
    clean_j = 468.0 * 300.0 + 2024.0 * first_s
    assert energy.energy_j == pytest.approx(clean_j + CAPPED_W * capped_s)
    grams = (clean_j * 40.0 + CAPPED_W * capped_s * 150.0) / J_PER_KWH
    assert energy.emissions_g == pytest.approx(grams)
    # The share in the window keeps its meaning: what was drawn below enter_below.
    assert energy.clean_j == pytest.approx(clean_j)
    assert site.train_s == pytest.approx(4 * HOUR)


def test_sites_that_train_together_lose_the_same_share_of_time_capped_or_not():
    traces = {"a": trace((0, 40)), "b": trace((0, 150))}
    outcome = simulate(game(traces, CAPS, until=T0 + HOUR, round_overhead_share=0.25))
    shared_s = HOUR - 300.0
    assert outcome.sites["b"].train_s == pytest.approx(0.75 * SPEED * shared_s)
    assert outcome.train_site_s == pytest.approx(0.75 * (1.0 + SPEED) * shared_s)
    joules = 468.0 * 300.0 + (0.75 * CAPPED_W + 0.25 * 468.0) * shared_s
    assert outcome.sites["b"].energy.energy_j == pytest.approx(joules)


def test_in_a_mixed_fleet_only_the_site_that_can_is_capped():
    sites = {"a": PLAIN, "b": NODE}
    traces = {"a": trace((0, 150)), "b": trace((0, 150))}
    outcome = simulate(game(traces, CAPS, sites=sites, until=T0 + HOUR))
    assert outcome.sites["a"].phases == []
    assert [phase for phase, _, _ in outcome.sites["b"].phases][-1] is Phase.CAPPED


def test_a_deadline_caps_where_that_is_cheaper_and_is_near_the_oracle():
    traces = {"a": trace((0, 60), (3, 90), (8, 120))}
    issues = Issues(Issuing("perfect"), traces.__getitem__, T0)
    asked = game(
        traces, Deadline(deadline_s=8 * HOUR), train_site_s=5 * HOUR, until=T0 + 9 * HOUR,
        issues=issues,
    )  # fmt: skip
    outcome = simulate(asked)
    plain = simulate(replace(asked, sites={"a": PLAIN}))
    assert outcome.completed
    assert plain.completed
    assert outcome.end <= T0 + 8 * HOUR
    assert any(phase is Phase.CAPPED for phase, _, _ in outcome.sites["a"].phases)
    assert outcome.energy.emissions_g < plain.energy.emissions_g
    best = bound(asked, outcome, 20.0)
    assert best is not None
    assert best.emissions_kg * (1 - 1e-3) <= outcome.energy.emissions_g / 1000.0
    assert outcome.energy.emissions_g / 1000.0 <= 1.03 * best.emissions_kg


def capped_experiment(**sections):
    site = {"preset": "duck", "capped_power_w": CAPPED_W, "capped_speed": SPEED}
    body = json.loads(configuration.dump(experiment()))
    sections = {"sites": {"duck": site}, "policy": {"cap_below_g_per_kwh": 200.0}, **sections}
    return configuration.parse({**body, **sections}, "test")


def test_a_plan_sets_the_capped_policy_beside_the_same_without_its_cap():
    settings = capped_experiment(plan={"train_site_h": 4.0})
    rows = {row.name: row.outcome for row in compare(settings, {"duck": DIM["a"]}, T0).rows}
    assert {"threshold-capped", "threshold", "lookahead", "always"} <= rows.keys()
    assert rows["threshold-capped"].end < rows["threshold"].end


# -- live --


def played(tmp_path, *steps, faults=(), policy=None, hours=6.0) -> Virtual:
    settings = capped_experiment(
        run={"duration_s": hours * HOUR},
        policy=policy or {"cap_below_g_per_kwh": 200.0},
        rounds={"length_s": 3 * HOUR, "max_steps": 10**5, "grace_wall_s": 20.0},
    )
    traces = {"duck": trace(*steps)}
    virtual = Virtual(tmp_path, settings, steps_per_epoch=10**6, traces=traces)
    until = T0 + (hours + 1.0) * HOUR
    virtual.until(until, [(T0 + at_h * HOUR, fault) for at_h, fault in faults])
    virtual.close()
    assert virtual.loop.finished
    return virtual


def kinds(virtual) -> list[str]:
    shown = (WindowOpened, WindowDimmed, WindowCleared, WindowClosed)
    return [
        type(event).__name__ for event in virtual.folder.read_events() if isinstance(event, shown)
    ]


STRETCHES = ((0, 40), (1, 150), (3, 40), (4, 400))


def test_the_loop_caps_a_site_in_a_dim_window_and_everything_adds_up(tmp_path):
    virtual = played(tmp_path, *STRETCHES)
    assert kinds(virtual) == ["WindowOpened", "WindowDimmed", "WindowCleared", "WindowClosed"]
    ledger = virtual.loop.meter.ledger
    capped = ledger.total(phase=Phase.CAPPED)
    assert capped.duration_s == pytest.approx(2 * HOUR, abs=120.0)
    assert capped.energy_j == pytest.approx(CAPPED_W * capped.duration_s)
    # Each level is entered at the tick after it was wanted: here a minute later.
    assert capped.emissions_g == pytest.approx(capped.energy_j / J_PER_KWH * 150.0, rel=0.01)
    assert [check for check in verify(virtual.folder) if check.passed is False] == []
    # What was trained is what the site's speeds give: a step of 20 s at full power.
    trained = worked_s(ledger, {"duck": SPEED})
    steps = virtual.loop.rounds.head.tokens / TOKENS_PER_STEP
    assert steps == pytest.approx(0.05 * trained, rel=0.01)
    run = RunData(virtual.folder)
    assert run.train_s == trained
    assert Phase.CAPPED in run.drawing


def test_the_steps_of_a_capped_stretch_come_at_the_capped_speed(tmp_path):
    virtual = played(tmp_path, *STRETCHES)
    times = [t for t, _ in virtual.folder.read_steps()]
    dim = [t for t in times if T0 + 1.2 * HOUR < t < T0 + 2.8 * HOUR]
    clean = [t for t in times if T0 + 0.2 * HOUR < t < T0 + 0.9 * HOUR]
    assert float(np.median(np.diff(clean))) == pytest.approx(20.0, abs=0.01)
    assert float(np.median(np.diff(dim))) == pytest.approx(20.0 / SPEED, abs=0.01)


def test_a_plan_in_virtual_time_and_the_loop_agree(tmp_path):
    virtual = played(tmp_path, *STRETCHES)
    settings = virtual.settings
    outcome = simulate(
        Scenario(
            settings.policy, {"duck": settings.sites["duck"].costs()}, virtual.traces or {}, T0,
            T0 + 6 * HOUR,
        )
    )  # fmt: skip
    ledger = virtual.loop.meter.ledger
    assert worked_s(ledger, {"duck": SPEED}) == pytest.approx(outcome.train_site_s, rel=0.02)
    assert ledger.total().energy_j == pytest.approx(outcome.energy.energy_j, rel=0.02)


@pytest.mark.parametrize("at_h", [0.5, 1.5, 2.5])
def test_a_coordinator_that_restarts_knows_at_which_level_the_window_was(tmp_path, at_h):
    """In the band between, readings alone do not say it: 110 g is full after 40, dim after 150."""
    steps = ((0, 40), (0.4, 110), (1, 150), (1.4, 110), (2, 40), (2.4, 110), (3, 400))
    whole = played(tmp_path / "whole", *steps, hours=4.0)
    again = played(tmp_path / "again", *steps, hours=4.0, faults=[(at_h, Virtual.restart)])
    assert kinds(again) == kinds(whole)
    capped_s = [v.loop.meter.ledger.total(phase=Phase.CAPPED).duration_s for v in (whole, again)]
    assert capped_s[1] == pytest.approx(capped_s[0], abs=180.0)  # its open round is lost
    assert [check for check in verify(again.folder) if check.passed is False] == []


def test_a_window_may_open_dim_and_a_site_lingers_capped(tmp_path):
    policy = {"cap_below_g_per_kwh": 200.0, "linger_s": 900.0}
    virtual = played(tmp_path, (0, 400), (1, 150), (2, 400), policy=policy, hours=4.0)
    assert kinds(virtual) == ["WindowOpened", "WindowClosed"]
    ledger = virtual.loop.meter.ledger
    assert ledger.total(phase=Phase.TRAINING).duration_s == 0.0
    assert ledger.total(phase=Phase.CAPPED).duration_s == pytest.approx(
        HOUR - 300.0 + 900.0, abs=120.0
    )
    assert [check for check in verify(virtual.folder) if check.passed is False] == []


def test_a_feed_that_falls_silent_in_a_dim_window_ends_the_training(tmp_path):
    nan = math.nan
    virtual = played(tmp_path, (0, 150), (1, nan), (2, 150), (3, 400), hours=4.0)
    ledger = virtual.loop.meter.ledger
    assert ledger.total(phase=Phase.CAPPED).unpriced_j == 0.0
    assert [check for check in verify(virtual.folder) if check.passed is False] == []


@pytest.mark.parametrize(
    ("was", "becomes"), [("capped", "training"), ("training", "capped")], ids=str
)
def test_verify_names_a_stretch_at_another_power_than_its_window_allows(tmp_path, was, becomes):
    virtual = played(tmp_path, *STRETCHES)
    for path, old, new in (
        (virtual.folder.events_file, f'"phase": "{was}"', f'"phase": "{becomes}"'),
        (virtual.folder.series / "power.csv", f",{was},", f",{becomes},"),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    failed = {check.name for check in verify(virtual.folder) if check.passed is False}
    assert "energy-adds-up" in failed
    assert ("only-in-windows" in failed) == (becomes == "training")


def test_what_a_site_could_not_do_is_written_down_once(tmp_path):
    def complain(virtual):
        virtual.sites.complaints["duck"] = "only root may"

    virtual = played(tmp_path, *STRETCHES, faults=[(0.5, complain)])
    troubles = [e for e in virtual.folder.read_events() if isinstance(e, Trouble)]
    assert [(event.source, event.message) for event in troubles] == [("site duck", "only root may")]


def test_a_site_without_a_cap_draws_full_power_whatever_a_record_says():
    assert SiteSection().power_w(Phase.CAPPED) == SiteSection().train_power_w


def test_always_never_caps():
    assert decide(Always(), NODE, view(dim=True)).verdict is Verdict.TRAIN


def test_the_report_shows_dim_windows_and_capped_training_apart(tmp_path):
    virtual = played(tmp_path, *STRETCHES)
    run = RunData(virtual.folder)
    (window_,), (dim,) = run.windows("duck"), run.dim_windows("duck")
    assert window_.start < dim.start < dim.end < window_.end
    assert dim.end - dim.start == pytest.approx(2 * HOUR)
    figure = Figure()
    assert draw_windows(run, figure)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"dim: capped only", "capped", "full power below 100"} <= set(told)


def test_a_plan_s_figure_names_capped_training_only_where_there_is_some():
    for policy, capped in ((Threshold(), False), (CAPS, True)):
        outcome = simulate(game(DIM, policy, train_site_s=4 * HOUR))
        did = {name: site.phases for name, site in outcome.sites.items()}
        figure = Figure()
        draw_game(figure, Game("x", outcome.start, outcome.end, True, 1.0, did, DIM, 100.0))
        told = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("capped" in told) is capped
