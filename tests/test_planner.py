"""Plans to a deadline: the cheapest slots, kept in time, never on what nobody knows."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.published import published
from uncurtail.core.forecasts import perfect
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.planner import Plan, Stand, Work, left_site_s, make_plan
from uncurtail.core.policy import Costs, Deadline, Verdict
from uncurtail.core.schedule import Grid, cheapest
from uncurtail.core.signals import Trace

NODE = Costs(2024.0, 468.0, 468.0, 300.0)
T0 = 1_768_089_600.0
HOUR = 3600.0


def grid(prices, **changes) -> Grid:
    prices = np.array(prices, dtype=float)
    sites, slots = prices.shape
    body = {
        "edges": T0 + np.arange(slots + 1) * 300.0,
        "prices": prices,
        "train_w": np.full(sites, 2024.0),
        "idle_w": np.full(sites, 468.0),
        "provision_w": np.full(sites, 468.0),
        "provision_s": np.full(sites, 300.0),
        "ready_at": np.full(sites, np.inf),
    }
    return Grid(**{**body, **changes})


def cost(game: Grid, up, train, capped=False) -> float:
    """What a schedule costs; up but not in training is idle or provisioning, at the same power."""
    power_w = np.where(train, game.train_w[:, None], np.where(up, game.idle_w[:, None], 0.0))
    if game.capped_w is not None:
        power_w = np.where(capped, game.capped_w[:, None], power_w)
    return float((power_w * game.prices * game.lengths_s).sum() / J_PER_KWH)


def work_s(game: Grid, train, capped=False) -> float:
    count = train.sum(axis=0)
    share = np.where(count >= 2, 1.0 - game.round_overhead_share, 1.0)
    speed = 1.0 if game.capped_speed is None else np.where(capped, game.capped_speed[:, None], 1.0)
    return float(((train * speed).sum(axis=0) * share * game.lengths_s).sum())


def valid(up, train) -> bool:
    """Whether each stay begins with one slot of provisioning, in which nothing is trained."""
    before = np.pad(up, ((0, 0), (1, 0)))[:, :-1]
    return bool((~train | (up & before)).all())


def best_by_hand(game: Grid, needed_s: float) -> float | None:
    """The least cost over every schedule there is."""
    slots = game.prices.shape[1]
    rows = []
    states_of_a_slot = (0, 1, 2) if game.capped_w is None else (0, 1, 2, 3)
    for states in itertools.product(states_of_a_slot, repeat=slots):  # off, up, training, capped
        up = np.array([[s > 0 for s in states]])
        train = np.array([[s >= 2 for s in states]])
        capped = np.array([[s == 3 for s in states]])
        if valid(up, train):
            rows.append((up, train, capped))
    found = [
        cost(game, *masks)
        for choice in itertools.product(rows, repeat=len(game.prices))
        for masks in [tuple(np.concatenate(part) for part in zip(*choice, strict=True))]
        if work_s(game, *masks[1:]) >= needed_s - 1e-6
    ]
    return min(found, default=None)


prices = st.sampled_from([0.0, 5.0, 40.0, 70.0, 400.0, 450.0])


@settings(deadline=None, max_examples=60)
@given(st.lists(prices, min_size=2, max_size=7), st.integers(1, 6))
def test_one_site_s_schedule_is_the_best_for_the_work_that_some_price_buys(row, slots):
    game = grid([row])
    best = best_by_hand(game, slots * 300.0)
    found = cheapest(game, slots * 300.0)
    assert (found is None) == (best is None)
    if found is None or best is None:
        return
    assert valid(found.up, found.train)
    assert work_s(game, found.train) >= slots * 300.0 - 1e-6
    # A price for training finds the best for the work it finds, and what is over is cut off again.
    bests = [best_by_hand(game, count * 300.0) or 0.0 for count in range(len(row))]
    assert best - 1e-9 <= cost(game, found.up, found.train) <= priced(bests, slots) + 1e-9


def priced(bests: list[float], slots: int) -> float:
    """The best for the least work from `slots` on that is the best at some price for training.

    `bests` are the least costs by slots of work. What lies above the line between two others is
    never the best at any price; where three lie on one line, the search may end at the last.
    """
    for count in range(slots, len(bests) - 1):
        before = max((bests[count] - bests[n]) / (count - n) for n in range(count))
        behind = min((bests[n] - bests[count]) / (n - count) for n in range(count + 1, len(bests)))
        if before < behind - 1e-9:
            return bests[count]
    return bests[-1]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(prices, min_size=2, max_size=5),
    st.integers(1, 12),
    st.sampled_from([600.0, 1214.0, 2000.0]),
    st.sampled_from([0.4, 0.8]),
)
def test_a_schedule_with_capped_slots_does_the_work_and_is_counted_right(
    row, thirds, capped_w, speed
):
    game = grid([row], capped_w=np.array([capped_w]), capped_speed=np.array([speed]))
    needed_s = thirds * 100.0
    best, found = best_by_hand(game, needed_s), cheapest(game, needed_s)
    assert (found is None) == (best is None)
    if found is None or best is None:
        return
    assert valid(found.up, found.train)
    assert not (found.capped & ~found.train).any()
    assert work_s(game, found.train, found.capped) >= needed_s - 1e-6
    assert cost(game, found.up, found.train, found.capped) >= best - 1e-9


@pytest.mark.parametrize(
    ("row", "needed_s", "most"),
    [
        pytest.param([50, 50, 50, 50, 50, 50], 1200.0, 1.0, id="all-capped-does-it"),
        pytest.param([50, 50, 50, 50, 50, 50], 1320.0, 1.1, id="some-of-it-capped"),
        pytest.param([5, 5, 40, 40, 400, 400], 780.0, 1.0, id="dear-slots-capped"),
    ],
)
def test_a_schedule_with_capped_slots_is_near_the_best_there_is(row, needed_s, most):
    game = grid([row], capped_w=np.array([0.6 * 2024.0]), capped_speed=np.array([0.8]))
    best, found = best_by_hand(game, needed_s), cheapest(game, needed_s)
    assert best is not None
    assert found is not None
    assert found.capped.any()
    assert cost(game, found.up, found.train, found.capped) <= best * most + 1e-9


def test_where_there_is_time_a_schedule_is_capped_and_where_there_is_none_it_is_not():
    """At 60 % of the power for 80 % of the speed, three quarters of the energy do the work."""
    game = grid([[50] * 6], capped_w=np.array([0.6 * 2024.0]), capped_speed=np.array([0.8]))
    roomy, tight = cheapest(game, 4 * 300.0), cheapest(game, 5 * 300.0)
    assert roomy is not None
    assert tight is not None
    assert roomy.capped.sum() == roomy.train.sum() == 5
    assert not tight.capped.any()


def test_two_sites_share_the_work_by_their_prices():
    game = grid([[400, 10, 10, 10, 400, 400], [400, 400, 400, 20, 20, 20]])
    found = cheapest(game, 4 * 300.0)
    assert found is not None
    assert valid(found.up, found.train)
    assert work_s(game, found.train) == 4 * 300.0
    assert cost(game, found.up, found.train) <= 1.05 * (best_by_hand(game, 4 * 300.0) or 0.0)


def test_what_does_not_fit_has_no_schedule():
    assert cheapest(grid([[1, 1, 1]]), 3 * 300.0) is None
    assert cheapest(grid([[1, 1, 1]]), 2 * 300.0) is not None


def test_a_site_that_runs_already_needs_no_start():
    running = grid([[5, 5, 5]], ready_at=np.array([T0]))
    found = cheapest(running, 3 * 300.0)
    assert found is not None
    assert found.train.all()


def test_no_more_sites_are_up_than_may_be():
    game = grid([[10] * 6, [20] * 6, [30] * 6], max_sites=2)
    found = cheapest(game, 8 * 300.0)
    assert found is not None
    assert found.up.sum(axis=0).max() <= 2


# -- plans --


trace = partial(published, T0, end_h=48.0)


def stand(*steps, ready_at=None, known=True, told=True, price=None) -> Stand:
    truth = trace(*steps)
    value = truth.at(T0) if known else None
    return Stand(
        NODE,
        value,
        value is not None and value < 100.0,
        ready_at,
        perfect(truth, "a", T0, 24 * HOUR) if told else None,
        None if price is None else perfect(trace(*price), "a", T0, 48 * HOUR),
    )


def work(hours, by_h=10.0, **changes) -> Work:
    return Work(T0, T0 + by_h * HOUR, hours * HOUR, **changes)


def trained_h(plan: Plan, site: str, until_h=24.0) -> float:
    ends = T0 + until_h * HOUR
    return math.fsum(
        (min(span.end, ends) - span.start) / HOUR
        for span in plan.spans[site]
        if span.verdict is Verdict.TRAIN
    )


POLICY = Deadline(deadline_s=10 * HOUR)


def test_the_work_goes_to_the_cleanest_hours_before_the_deadline():
    stands = {"a": stand((0, 60), (8, 400)), "b": stand((0, 400), (5, 2), (12, 400))}
    plan = make_plan(POLICY, work(4.0), stands)
    assert trained_h(plan, "b") == pytest.approx(4.0, abs=0.1)
    assert trained_h(plan, "a") == 0.0
    assert plan.no_choice is None
    begin = plan.spans["b"][0]
    assert begin.verdict is Verdict.READY, "it is started first"
    assert begin.end - begin.start == pytest.approx(300.0)


def test_a_nearer_deadline_takes_dearer_hours_and_one_too_near_takes_all():
    stands = {"a": stand((0, 60), (8, 400)), "b": stand((0, 400), (5, 2), (12, 400))}
    nearer = make_plan(POLICY, work(4.0, by_h=7.0), stands)
    assert trained_h(nearer, "a", 7.0) + trained_h(nearer, "b", 7.0) == pytest.approx(4.0, abs=0.1)
    assert trained_h(nearer, "a", 7.0) > 1.5
    hopeless = make_plan(POLICY, work(40.0), stands)
    assert all(hopeless.spans[name][0].verdict is Verdict.TRAIN for name in stands)
    assert hopeless.no_choice is not None
    assert "too near" in hopeless.no_choice


def test_dirty_power_is_used_only_where_there_is_no_other_and_is_owned_up_to():
    plan = make_plan(POLICY, work(9.5), {"a": stand((0, 400), ready_at=T0)})
    assert trained_h(plan, "a", 10.0) == pytest.approx(9.5, abs=0.1)
    late = make_plan(POLICY, work(9.9), {"a": stand((0, 400), ready_at=T0)})
    assert late.no_choice == "the deadline leaves no choice: a train above 120 g/kWh"


def test_power_of_which_nothing_is_known_is_never_taken_for_clean():
    silent = stand((0, 5), known=False, told=False)
    plan = make_plan(POLICY, work(2.0), {"silent": silent, "told": stand((0, 60))})
    assert trained_h(plan, "silent") == 0.0
    assert trained_h(plan, "told") == pytest.approx(2.0, abs=0.1)


def test_without_any_forecast_sites_keep_to_their_windows_until_time_is_short():
    stands = {"a": stand((0, 400), told=False)}
    early = make_plan(POLICY, work(4.0), stands)
    assert early.spans == {}
    assert early.no_choice is None
    slow = Deadline(deadline_s=10 * HOUR, replan_s=1e6)
    assert make_plan(slow, work(4.0), stands).revisit == T0 + 6 * HOUR - 300.0
    due = make_plan(POLICY, work(9.95), stands)
    assert due.no_choice is not None
    assert due.spans["a"][0].verdict is Verdict.TRAIN


def test_by_cost_the_cheap_hours_are_taken_whatever_they_emit():
    policy = Deadline(deadline_s=10 * HOUR, objective="cost")
    stands = {
        "clean": stand((0, 5), price=((0, 0.30),)),
        "cheap": stand((0, 400), price=((0, 0.30), (3, 0.02), (9, 0.30))),
    }
    plan = make_plan(policy, work(4.0), stands)
    assert trained_h(plan, "cheap") == pytest.approx(4.0, abs=0.1)
    assert plan.no_choice is None


def test_nothing_left_and_no_time_left_are_plans_too():
    assert make_plan(POLICY, work(0.0), {"a": stand((0, 5))}).spans == {"a": ()}
    passed = make_plan(POLICY, work(1.0, by_h=-1.0), {"a": stand((0, 5))})
    assert passed.no_choice is not None
    assert "passed" in passed.no_choice


@pytest.mark.parametrize(
    ("hours", "tokens", "trained_s", "left"),
    [
        pytest.param(None, 0, 0.0, None, id="nothing-is-known"),
        pytest.param(10.0, 0, 0.0, 36_000.0, id="as-declared"),
        pytest.param(10.0, 250, 5000.0, 15_000.0, id="as-measured"),
        pytest.param(10.0, 1000, 5000.0, 0.0, id="done"),
        pytest.param(10.0, 2000, 5000.0, 0.0, id="more-than-done"),
    ],
)
def test_what_is_left_follows_the_throughput_once_there_is_one(hours, tokens, trained_s, left):
    policy = Deadline(deadline_s=1.0, site_hours=hours)
    assert left_site_s(policy, 1000, tokens, trained_s) == left


levels = st.floats(0.0, 900.0) | st.just(math.nan)
rows = st.lists(levels, min_size=1, max_size=30)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(rows, st.booleans(), st.none() | st.floats(-600.0, 600.0)),
             min_size=1, max_size=3),
    st.floats(0.0, 20.0), st.floats(-1.0, 30.0), st.none() | st.integers(1, 3),
    st.floats(0.0, 0.5),
)  # fmt: skip
def test_every_plan_is_made_of_orderly_spans(sites, hours, by_h, cap, share):
    stands = {}
    for number, (values, told, ready) in enumerate(sites):
        truth = Trace(
            T0 + np.arange(len(values), dtype=np.float64) * 1800.0,
            np.array(values, dtype=np.float64),
            T0 + 15 * HOUR,
        )
        value = truth.at(T0)
        forecast = perfect(truth, "a", T0, 10 * HOUR) if told else None
        ready_at = None if ready is None else T0 + ready
        stands[f"s{number}"] = Stand(NODE, value, False, ready_at, forecast)
    plan = make_plan(POLICY, work(hours, by_h, max_sites=cap, round_overhead_share=share), stands)
    assert not math.isnan(plan.revisit)
    for spans in plan.spans.values():
        assert all(span.start < span.end for span in spans)
        assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
