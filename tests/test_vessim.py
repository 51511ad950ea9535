"""Vessim in the loop: what goes in comes back, and unknown never comes back as a number."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uncurtail.adapters.vessim import VessimFeed
from uncurtail.core.grids import synthetic
from uncurtail.core.signals import Trace

NAN = math.nan
START = 1_768_150_800.0
# The first example imports Vessim, which takes half a second.
slow_start = settings(deadline=None, max_examples=50)


def trace(times, values, end, offset=START):
    return Trace(np.array(times, dtype=float) + offset, np.array(values, dtype=float), end + offset)


def constant(value=50.0):
    return Trace(np.array([0.0]), np.array([value]), math.inf)


def told(feed, after, until):
    return [(r.site, r.t - START, r.value) for r in feed.readings(after + START, until + START)]


def test_the_value_in_force_at_the_start_comes_first_and_then_every_publication_by_time():
    feed = VessimFeed(
        {"b": trace([-50, 100, 200], [1, 2, 2], 300), "a": trace([0, 100], [8, 9], 500)}, START
    )
    assert told(feed, -1, 150) == [("b", 0, 1), ("a", 0, 8), ("b", 100, 2), ("a", 100, 9)]
    assert told(feed, 150, 250) == [("b", 200, 2)]
    assert told(feed, 250, 999) == [("b", 300, None), ("a", 500, None)]
    assert told(feed, 0, 99) == []
    assert told(feed, -99, -1) == []


def test_an_unknown_stretch_is_told_when_it_begins():
    feed = VessimFeed({"a": trace([0, 100, 200], [1, NAN, 3], 300)}, START)
    assert told(feed, -1, 999) == [("a", 0, 1), ("a", 100, None), ("a", 200, 3), ("a", 300, None)]


@pytest.mark.parametrize(
    "unknown",
    [
        pytest.param(trace([0, 100], [NAN, NAN], 500), id="only-nan"),
        pytest.param(trace([-200, -100], [1, 2], -50), id="over-before-the-start"),
        pytest.param(trace([0, 100], [math.inf, -math.inf], 500), id="infinite"),
    ],
)
def test_a_trace_that_knows_nothing_yields_no_value_and_the_site_still_draws(unknown):
    feed = VessimFeed({"a": unknown}, START)
    assert {reading.value for reading in feed.readings(0.0, START + 999)} == {None}
    assert feed.draw(START, START + 600, {"a": 70.0}) == {"a": 70.0}


def test_a_trace_that_begins_later_is_unknown_until_it_does():
    feed = VessimFeed({"a": trace([100], [5], 200)}, START)
    assert told(feed, -1, 150) == [("a", 0, None), ("a", 100, 5)]


seconds = st.floats(-1000, 1000, allow_nan=False)
values = st.one_of(st.sampled_from([NAN, math.inf, -math.inf]), st.floats(0, 1000))


@st.composite
def traces(draw):
    times = sorted({round(t, 3) for t in draw(st.lists(seconds, min_size=1, max_size=12))})
    held = draw(st.lists(values, min_size=len(times), max_size=len(times)))
    return trace(times, held, draw(st.one_of(seconds, st.just(math.inf))))


@slow_start
@given(st.lists(traces(), min_size=1, max_size=3), st.lists(seconds, max_size=8))
@example([trace([0.0, 1e-7], [1.0, 2.0], 3.0, offset=0.0)], [])
def test_readings_over_any_tiling_are_the_traces_and_unknown_never_yields_a_value(held, cuts):
    by_site = {str(i): each for i, each in enumerate(held)}
    feed = VessimFeed(by_site, START)
    edges = [START - 2000, *sorted(START + c for c in cuts), START + 2000]
    readings = [r for a, b in itertools.pairwise(edges) for r in feed.readings(a, b)]
    assert readings == feed.readings(-math.inf, START + 2000)
    assert readings == sorted(readings, key=lambda r: r.t)
    for site, each in by_site.items():
        expected = [START, *each.changes(START, START + 2000)]
        mine = [r for r in readings if r.site == site]
        assert [(r.t, r.value) for r in mine] == [(t, each.at(t)) for t in expected]
        published = [t for t in each.times if t <= START]
        if mine[0].value is not None:
            assert mine[0].as_of == published[-1], "what holds at the start is as old as it is"
        assert [r.as_of for r in mine[1:]] == [r.t for r in mine[1:]]


@slow_start
@given(st.lists(traces(), min_size=1, max_size=3))
def test_next_change_visits_exactly_the_times_of_the_readings(held):
    feed = VessimFeed({str(i): each for i, each in enumerate(held)}, START)
    now, visited = -math.inf, []
    while (now := feed.next_change(now)) < math.inf:
        visited.append(now)
    assert visited == sorted({r.t for r in feed.readings(-math.inf, START + 1e6)})


powers = st.floats(0, 1e6)
segments = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(1e-3, 1e5)), powers, powers), max_size=30
)


@slow_start
@given(segments, traces())
def test_energy_drawn_over_any_tiling_is_the_sum_of_power_times_time(parts, held):
    feed = VessimFeed({"a": held, "b": constant()}, START)
    now, drawn_j, expected_j = START, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}
    for duration_s, a, b in parts:
        end = now + duration_s
        average_w = feed.draw(now, end, {"a": a, "b": b})
        for site, watts in (("a", a), ("b", b)):
            drawn_j[site] += average_w[site] * (end - now)
            expected_j[site] += watts * (end - now)
        now = end
    assert drawn_j == pytest.approx(expected_j)


def test_consumption_is_positive_and_a_site_that_is_off_draws_zero():
    feed = VessimFeed({"a": constant(), "b": constant()}, START)
    drawn = feed.draw(START, START + 0.25, {"a": 500.0, "b": 0.0})
    assert drawn == {"a": 500.0, "b": 0.0}
    assert math.copysign(1.0, drawn["b"]) == 1.0


def test_a_segment_of_no_length_does_nothing():
    feed = VessimFeed({"a": constant()}, START)
    assert feed.draw(START, START, {"a": 9.0}) == {"a": 0.0}
    feed.draw(START, START + 10, {"a": 5.0})
    assert feed.draw(START + 10, START + 10, {"a": 9.0}) == {"a": 5.0}
    assert feed.draw(START + 10, START + 20, {"a": 6.0}) == {"a": 6.0}


@pytest.mark.parametrize(
    ("start", "end", "power_w", "message"),
    [
        pytest.param(11, 20, {"a": 1.0, "b": 1.0}, "tile the time", id="hole"),
        pytest.param(9, 20, {"a": 1.0, "b": 1.0}, "tile the time", id="overlap"),
        pytest.param(10, 9, {"a": 1.0, "b": 1.0}, "tile the time", id="backwards"),
        pytest.param(10, NAN, {"a": 1.0, "b": 1.0}, "tile the time", id="nan"),
        pytest.param(10, math.inf, {"a": 1.0, "b": 1.0}, "tile the time", id="endless"),
        pytest.param(10, 20, {"a": 1.0}, r"exactly this feed's sites: see \['b'\]", id="missing"),
        pytest.param(10, 20, {"a": 1.0, "b": 1.0, "c": 1.0}, r"\['c'\]", id="stranger"),
        pytest.param(10, 20, {"a": 1.0, "b": -1.0}, "power of b", id="negative"),
        pytest.param(10, 20, {"a": 1.0, "b": NAN}, "power of b", id="nan-power"),
    ],
)
def test_a_draw_that_is_refused_advances_nothing(start, end, power_w, message):
    feed = VessimFeed({"a": constant(), "b": constant()}, START)
    feed.draw(START, START + 10, {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match=message):
        feed.draw(START + start, START + end, power_w)
    assert feed.draw(START + 10, START + 20, {"a": 3.0, "b": 4.0}) == {"a": 3.0, "b": 4.0}


def test_readings_and_draws_do_not_disturb_each_other():
    held = synthetic("duck", seed=1, start=START, duration_s=86_400.0)
    lone, both = VessimFeed({"a": held}, START), VessimFeed({"a": held}, START)
    for hour in range(30):  # six hours past the end of the trace
        a, b = START + hour * 3600.0, START + (hour + 1) * 3600.0
        assert both.draw(a, b, {"a": 10.0 * hour}) == {"a": 10.0 * hour}
        assert both.readings(a, b) == lone.readings(a, b)
    assert both.readings(0.0, START + 200_000) == lone.readings(0.0, START + 200_000)


def test_a_feed_of_no_sites_has_nothing_to_say():
    feed = VessimFeed({}, START)
    assert feed.readings(0.0, START + 1e6) == []
    assert feed.next_change(START) == math.inf
    assert feed.draw(START, START + 1, {}) == {}


def test_a_start_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="start"):
        VessimFeed({}, NAN)


def test_importing_the_adapter_does_not_import_vessim():
    code = "import sys, uncurtail.adapters.vessim; print('vessim' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
