"""A site's own power: where each joule comes from, for how long it lasts, and when it counts."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.adapters.vessim_own import VessimOwnPower
from uncurtail.core.microgrid import (
    SUN_HELD_S,
    Carried,
    Microgrid,
    MicrogridSection,
    Mode,
    Own,
    carried_until,
)
from uncurtail.core.policy import Costs, Threshold, Verdict, View, decide, pays_s
from uncurtail.core.signals import Trace
from uncurtail.core.solar import sunshine

START = 1_784_851_200.0  # 24 July 2026
HOUR = 3600.0
BATTERY = MicrogridSection(
    battery_wh=10_000.0, battery_initial_soc=0.5, battery_min_soc=0.1, battery_c_rate=0.5
)


def sun(*watts, every_s=300.0):
    times = START + every_s * np.arange(len(watts))
    return Trace(times, np.array(watts, dtype=float), START + every_s * len(watts))


# -- what flows --


@pytest.mark.parametrize(
    ("watts", "mode", "flow"),
    [
        pytest.param(0.0, Mode.USE, (0, 2000, 0, 0, 0), id="night"),
        pytest.param(1500.0, Mode.USE, (1500, 500, 0, 0, 0), id="short-of-sun"),
        pytest.param(9000.0, Mode.USE, (2000, 0, 0, 5000, 0), id="surplus-up-to-the-limit"),
        pytest.param(1500.0, Mode.SPARE, (1500, 0, 500, 0, 0), id="curtailed-grid-spares-it"),
        pytest.param(2600.0, Mode.SPARE, (2000, 0, 0, 600, 0), id="sun-charges-in-a-window-too"),
        pytest.param(2600.0, Mode.CHARGE, (2000, 0, 4400, 600, 4400), id="sun-first-then-grid"),
    ],
)
def test_the_sun_comes_first_then_the_battery_then_the_grid(watts, mode, flow):
    found = Microgrid(BATTERY, sun(watts)).flow(0.5, 2000.0, START, 60.0, mode)
    told = (
        found.solar_w,
        found.battery_w,
        found.grid_w,
        found.solar_charge_w,
        found.grid_charge_w,
    )
    assert told == pytest.approx(flow)


@pytest.mark.parametrize(
    ("value", "allowed", "mode"),
    [
        pytest.param(None, True, Mode.USE, id="unknown-is-never-green"),
        pytest.param(100.0, True, Mode.USE, id="dirty"),
        pytest.param(99.0, True, Mode.CHARGE, id="curtailed"),
        pytest.param(99.0, False, Mode.SPARE, id="curtailed-and-not-allowed"),
    ],
)
def test_the_grid_charges_only_where_allowed_and_known_to_be_curtailed(value, allowed, mode):
    section = BATTERY.model_copy(update={"charge_from_curtailed": allowed})
    assert Microgrid(section).mode(value, 100.0) is mode


suns = st.lists(st.floats(0.0, 12_000.0), min_size=1, max_size=8)
modes = st.sampled_from(list(Mode))
stretches = st.lists(
    st.tuples(st.integers(1, 4000).map(float), st.floats(0.0, 8000.0), modes),
    min_size=1,
    max_size=6,
)
sections = st.builds(
    MicrogridSection,
    battery_wh=st.sampled_from([0.0, 100.0, 10_000.0]),
    solar_peak_w=st.just(1.0),
    battery_initial_soc=st.floats(0.2, 1.0),
    battery_min_soc=st.floats(0.0, 0.2),
    battery_c_rate=st.sampled_from([0.1, 0.5, 3.0]),
)


def walked(microgrid, parts):
    """Every piece with its load and mode, and the charge before it."""
    soc, now = microgrid.section.battery_initial_soc, START
    for seconds, load_w, mode in parts:
        for start, end, flow in microgrid.walk(soc, load_w, (now, now + seconds), mode):
            yield start, end, load_w, mode, soc, flow
            soc = flow.soc
        now += seconds


@settings(deadline=None)
@given(sections, suns, stretches)
def test_whatever_happens_energy_adds_up_and_the_battery_stays_within_its_limits(
    section, watts, parts
):
    microgrid = Microgrid(section, sun(*watts))
    pieces = list(walked(microgrid, parts))
    assert pieces[0][0] == START
    assert all(left[1] == right[0] for left, right in pairwise(pieces))
    for start, end, load_w, mode, soc, flow in pieces:
        given_w = flow.solar_w + flow.battery_w + flow.grid_w - flow.grid_charge_w
        assert given_w == pytest.approx(load_w, abs=1e-6)
        assert flow.solar_w + flow.solar_charge_w <= microgrid.solar_w(start) + 1e-6
        into_w = flow.solar_charge_w + flow.grid_charge_w
        assert max(into_w, flow.battery_w) <= microgrid.limit_w + 1e-6
        assert min(into_w, flow.battery_w, flow.grid_w, flow.grid_charge_w) >= 0.0
        assert section.battery_min_soc - 1e-9 <= flow.soc <= 1.0
        moved_wh = (flow.soc - soc) * section.battery_wh
        assert moved_wh * HOUR == pytest.approx((into_w - flow.battery_w) * (end - start), abs=1e-3)
        assert mode is Mode.USE or flow.battery_w == 0.0
        assert mode is Mode.CHARGE or flow.grid_charge_w == 0.0


@settings(deadline=None, max_examples=50)
@given(sections, suns, stretches)
def test_vessim_says_the_same_of_every_stretch(section, watts, parts):
    microgrid = Microgrid(section, sun(*watts))
    vessim = VessimOwnPower({"a": microgrid}, START, {})
    for start, end, load_w, mode, _, flow in walked(microgrid, parts):
        (theirs,) = vessim.draw(start, end, {"a": load_w}, {"a": mode}).values()
        assert theirs.soc == pytest.approx(flow.soc, abs=1e-6)
        for name in ("solar_w", "battery_w", "grid_w", "solar_charge_w", "grid_charge_w"):
            joules = [getattr(each, name) * (end - start) for each in (flow, theirs)]
            assert joules[1] == pytest.approx(joules[0], rel=1e-6, abs=1.0), name


def test_vessim_goes_on_from_the_charge_that_it_is_told():
    microgrid = Microgrid(BATTERY)
    vessim = VessimOwnPower({"a": microgrid}, START, {"a": 0.75})
    assert vessim.soc == {"a": 0.75}
    vessim.draw(START, START + HOUR, {"a": 1000.0}, {"a": Mode.USE})
    assert vessim.soc["a"] == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("start", "end", "loads", "message"),
    [
        pytest.param(1.0, 2.0, {"a": 1.0}, "tile it", id="hole"),
        pytest.param(0.0, 0.0, {"a": 1.0}, "tile it", id="empty"),
        pytest.param(0.0, 2.0, {"b": 1.0}, r"\['a', 'b'\]", id="stranger"),
        pytest.param(0.0, 2.0, {"a": math.nan}, "load of a", id="nan"),
    ],
)
def test_a_draw_of_own_power_that_makes_no_sense_is_refused(start, end, loads, message):
    vessim = VessimOwnPower({"a": Microgrid(BATTERY)}, START, {})
    with pytest.raises(ValueError, match=message):
        vessim.draw(START + start, START + end, loads, {"a": Mode.USE})
    assert vessim.soc == {"a": 0.5}


def test_sun_that_nobody_knows_is_no_sun():
    microgrid = Microgrid(BATTERY, sun(1000.0, math.nan))
    assert [microgrid.solar_w(START + s) for s in (-1.0, 0.0, 300.0, 600.0)] == [0, 1000, 0, 0]


# -- how long it lasts, and when that counts --


@pytest.mark.parametrize(
    ("soc", "watts", "load_w", "lasts_s"),
    [
        pytest.param(0.1, 0.0, 2000.0, 0.0, id="empty-at-night"),
        pytest.param(0.5, 0.0, 2000.0, 4000.0 / 2000.0 * HOUR, id="battery-alone"),
        pytest.param(0.5, 0.0, 5001.0, 0.0, id="more-than-it-can-give-at-once"),
        pytest.param(0.1, 1999.0, 2000.0, 0.0, id="a-watt-short-and-empty"),
        pytest.param(0.1, 2000.0, 2000.0, SUN_HELD_S, id="sun-alone-is-believed-for-an-hour"),
        pytest.param(0.1, 3000.0, 2000.0, 1.5 * HOUR, id="its-surplus-is-stored-meanwhile"),
        pytest.param(1.0, 9000.0, 2000.0, 5.5 * HOUR, id="a-full-battery-stores-no-more"),
        pytest.param(0.5, 1000.0, 2000.0, 2.5 * HOUR, id="half-from-the-sun-for-an-hour"),
    ],
)
def test_own_power_lasts_as_long_as_battery_and_sun_carry_all_of_the_load(
    soc, watts, load_w, lasts_s
):
    own = Microgrid(BATTERY, sun(watts)).own(soc, START, load_w)
    assert own == pytest.approx(Own(soc, watts - load_w, lasts_s))


@given(st.floats(0.1, 1.0), st.floats(0.0, 6000.0), st.floats(100.0, 6000.0))
def test_what_is_promised_is_kept_while_the_sun_stays_as_long_as_believed(soc, watts, load_w):
    """By the flows themselves: no joule from the grid until then, and at once behind it."""
    microgrid = Microgrid(BATTERY, sun(watts, every_s=SUN_HELD_S))
    lasts_s = microgrid.own(soc, START, load_w).lasts_s
    if lasts_s < 1.0:
        return
    inside = microgrid.walk(soc, load_w, (START, START + lasts_s - 0.5), Mode.USE)
    assert sum(flow.grid_w * (end - start) for start, end, flow in inside) < 1.0
    *_, (_, _, last) = microgrid.walk(soc, load_w, (START, START + lasts_s + 5.0), Mode.USE)
    assert last.grid_w > 0.0


def carry(lasts_s, start_s=None, *, before=False):
    until = carried_until(BATTERY, Own(0.5, 0.0, lasts_s), start_s, START, before=before)
    return None if until is None else until - START


def test_it_must_promise_much_to_be_counted_on_and_then_carries_to_its_end():
    assert carry(899.0) is None
    assert carry(900.0) == 300.0
    assert carry(899.0, before=True) == 300.0
    assert carry(200.0, before=True) == 140.0
    assert carry(60.0, before=True) is None


def test_a_start_must_pay():
    """300 s at 468 W against 3 % of 2,024 W: 43 minutes of training, as in `lookahead`."""
    needed_s = pays_s(BATTERY.start_share, COSTS, 2024.0)
    assert needed_s == pytest.approx(300.0 + 300.0 * 468.0 / (0.03 * 2024.0))
    assert carry(needed_s - 1.0, needed_s) is None
    assert carry(needed_s - 1.0, needed_s, before=True) is None, "a start is a start"
    assert carry(needed_s, needed_s) == 300.0


COSTS = Costs(2024.0, 468.0, 468.0, 300.0)


@pytest.mark.parametrize("value", [None, 900.0], ids=["unknown", "dirty"])
def test_a_site_that_carries_itself_trains_whatever_the_grid_and_no_longer(value):
    policy = Threshold()
    view = View(START, value, False, START - 99.0, START - 50.0, own=Own(0.9, -99.0, 5000.0))
    assert decide(policy, COSTS, view).verdict is Verdict.REST
    decision = decide(policy, COSTS, view._replace(carried=Carried(START + 300.0)))
    assert decision == (Verdict.TRAIN, START + 300.0)


# -- the section --


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({}, "battery_wh or solar_peak_w", id="nothing"),
        pytest.param({"battery_wh": 1.0, "battery_initial_soc": 0.05}, "raise it", id="empty"),
        pytest.param({"solar_peak_w": 1.0, "solar_path": "a.csv"}, "go together", id="no-column"),
        pytest.param({"battery_wh": 1.0, "resume_s": 10.0}, "would flap", id="no-hysteresis"),
    ],
)
def test_a_microgrid_that_makes_no_sense_is_refused(body, message):
    with pytest.raises(ValueError, match=message):
        MicrogridSection(**body)


# -- the sun --


def test_two_stretches_of_sunshine_agree_bit_for_bit_where_they_overlap():
    long = sunshine(6000.0, seed=3, start=START, duration_s=9 * 86400.0, utc_offset_h=-8.0)
    short = sunshine(6000.0, seed=3, start=START + 90_000.0, duration_s=86400.0, utc_offset_h=-8.0)
    inside = (long.times >= short.times[0]) & (long.times < short.end)
    assert np.array_equal(long.values[inside], short.values)
    other = sunshine(6000.0, seed=4, start=START, duration_s=9 * 86400.0, utc_offset_h=-8.0)
    assert not np.array_equal(long.values, other.values)


def test_the_sun_shines_by_day_never_above_its_peak_and_more_in_summer():
    year = sunshine(1000.0, seed=0, start=START, duration_s=365 * 86400.0, utc_offset_h=2.0)
    hours = (year.times / HOUR + 2.0) % 24.0
    assert year.values.min() == 0.0
    assert year.values[(hours < 4.0) | (hours > 20.5)].max() == 0.0
    assert 800.0 < year.values.max() <= 1000.0
    noon = year.values[np.abs(hours - 12.0) < 1.0].mean()
    assert noon > 2.0 * year.values[np.abs(hours - 16.5) < 1.0].mean()
    days = (year.times - START) / 86400.0
    summer, winter = year.values[days < 30.0], year.values[np.abs(days - 150.0) < 15.0]
    assert summer.mean() > 1.5 * winter.mean()
