"""Readings and traces: unknown power is never green."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncurtail.core.signals import Kind, Reading, Signal, Trace, usable

NAN = math.nan


def trace(times, values, end):
    return Trace(np.array(times, dtype=float), np.array(values, dtype=float), end)


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(None, id="no-reading"),
        pytest.param(Reading("a", 1000.0, None), id="source-does-not-know"),
        pytest.param(Reading("a", 1000.0, NAN), id="nan"),
        pytest.param(Reading("a", 1000.0, math.inf), id="infinite"),
        pytest.param(Reading("a", 1000.0, -1.0), id="negative"),
        pytest.param(Reading("a", 1000.0, 2001.0), id="implausible"),
        pytest.param(Reading("a", 99.0, 50.0), id="stale"),
        pytest.param(Reading("a", 1901.0, 50.0), id="from-the-future"),
        pytest.param(Reading("a", NAN, 50.0), id="published-at-no-time"),
    ],
)
def test_a_reading_that_cannot_be_trusted_is_unknown(reading):
    assert usable(reading, now=1000.0, stale_after_s=900.0) is None


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(Reading("a", 1000.0, 50.0, 99.0), id="published-long-before-it-came"),
        pytest.param(Reading("a", 99.0, 50.0, 1000.0), id="came-long-ago-stamped-for-now"),
        pytest.param(Reading("a", 1000.0, 50.0, 1901.0), id="stamped-ahead"),
        pytest.param(Reading("a", 1000.0, 50.0, NAN), id="published-at-no-time"),
        pytest.param(Reading("a", 1000.0, 50.0, None, Signal(Kind.PRICE, "EUR/MWh")), id="price"),
        pytest.param(Reading("a", 1000.0, 50.0, None, Signal(Kind.POWER, "W")), id="power"),
    ],
)
def test_a_live_reading_that_cannot_be_trusted_is_unknown(reading):
    assert usable(reading, now=1000.0, stale_after_s=900.0) is None


def test_a_stamp_from_the_future_does_not_come_true_by_waiting():
    reading = Reading("a", 1000.0, 50.0, 2500.0)
    assert [usable(reading, t, 900.0) for t in (1000.0, 1700.0, 1900.0, 2500.0)] == [None] * 4


def test_the_age_of_a_live_reading_counts_from_its_publication():
    reading = Reading("a", 1000.0, 50.0, 700.0)
    assert usable(reading, 1600.0, 900.0) == 50.0
    assert usable(reading, 1600.1, 900.0) is None


def test_a_price_is_judged_as_a_price_by_who_asks_for_one():
    price = Signal(Kind.PRICE, "EUR/MWh")
    assert usable(Reading("a", 0.0, -12.0, None, price), 0.0, 900.0, "EUR/MWh") == -12.0
    assert usable(Reading("a", 0.0, 1e6, None, price), 0.0, 900.0, "EUR/MWh") is None


@pytest.mark.parametrize("t", [100.0, 1000.0, 1900.0])
def test_a_plausible_reading_that_is_young_enough_may_be_acted_on(t):
    assert usable(Reading("a", t, 0.0), now=1000.0, stale_after_s=900.0) == 0.0


def test_a_trace_holds_each_value_until_the_next_and_knows_nothing_outside():
    held = trace([10, 20, 30], [1, NAN, 3], end=40.0)
    known = {t: held.at(t) for t in (9.9, 10, 19.9, 20, 29.9, 30, 39.9, 40)}
    assert known == {9.9: None, 10: 1, 19.9: 1, 20: None, 29.9: None, 30: 3, 39.9: 3, 40: None}


@pytest.mark.parametrize(
    ("times", "values", "end", "message"),
    [
        pytest.param([], [], 1.0, "equal n > 0", id="empty"),
        pytest.param([1, 2], [1], 3.0, "equal n > 0", id="lengths"),
        pytest.param([[1, 2]], [[1, 2]], 3.0, "equal n > 0", id="two-dimensional"),
        pytest.param([1, 1], [1, 2], 3.0, "strictly rising", id="doubled"),
        pytest.param([2, 1], [1, 2], 3.0, "strictly rising", id="falling"),
        pytest.param([1, NAN], [1, 2], 3.0, "strictly rising", id="nan-time"),
        pytest.param([NAN], [1], 3.0, "strictly rising", id="only-nan-time"),
        pytest.param([1, 2], [1, 2], NAN, "end", id="nan-end"),
    ],
)
def test_a_trace_that_is_no_function_of_time_is_refused(times, values, end, message):
    with pytest.raises(ValueError, match=message):
        trace(times, values, end)


def test_changes_exclude_their_start_and_include_their_end():
    held = trace([10, 20, 30], [1, 1, 3], end=40.0)
    assert held.changes(10.0, 30.0).tolist() == [20, 30]
    assert held.changes(9.0, 10.0).tolist() == [10]
    assert held.changes(30.0, 10.0).tolist() == []


def test_the_end_is_a_change_only_where_something_known_ends():
    assert trace([10], [1], 40.0).changes(0.0, 99.0).tolist() == [10, 40]
    assert trace([10], [NAN], 40.0).changes(0.0, 99.0).tolist() == [10]
    assert trace([10], [1], math.inf).changes(0.0, math.inf).tolist() == [10]


def test_rows_at_or_after_the_end_say_nothing():
    cut = trace([10, 20, 30], [1, 2, 3], end=20.0)
    assert cut.changes(-math.inf, math.inf).tolist() == [10, 20]
    assert cut.next_change(20.0) == math.inf
    assert trace([10], [1], end=5.0).changes(-math.inf, math.inf).tolist() == []


seconds = st.integers(-50, 50).map(float)
values = st.one_of(st.just(NAN), st.floats(0, 1000))


@st.composite
def traces(draw):
    times = sorted(draw(st.sets(seconds, min_size=1)))
    held = draw(st.lists(values, min_size=len(times), max_size=len(times)))
    return trace(times, held, draw(st.one_of(seconds, st.just(math.inf))))


@given(traces(), seconds, seconds)
def test_following_next_change_visits_exactly_the_changes(held, after, until):
    visited, now = [], after
    while (now := held.next_change(now)) <= until:
        visited.append(now)
    assert visited == held.changes(after, until).tolist()


@given(traces(), seconds)
def test_the_value_in_force_is_the_one_at_the_last_change(held, t):
    changes = held.changes(-math.inf, t)
    assert held.at(t) == (held.at(changes[-1]) if changes.size else None)
