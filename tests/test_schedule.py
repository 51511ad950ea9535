import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncurtail.lm.schedule import (
    ScheduleSection,
    decay_scale,
    lr_scale,
    muon_momentum,
    progress,
    rates,
)
from uncurtail.lm.trainer import TrainOrder

SECTION = ScheduleSection(warmup_share=0.1, warmdown_share=0.4, final_lr_share=0.1)


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [(0, 0.0), (50, 0.5), (100, 1.0), (600, 1.0), (800, 0.55), (1000, 0.1), (5000, 0.1)],
    ids=["start", "warming", "warm", "last-full", "cooling", "end", "beyond-the-budget"],
)
def test_rate_is_a_trapezoid_over_the_budget(tokens, wanted):
    assert lr_scale(SECTION, tokens, 1000, 0) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "section",
    [
        SECTION,
        ScheduleSection(),
        ScheduleSection(warmup_share=0, warmdown_share=0),
        ScheduleSection(warmup_share=1, warmdown_share=1),
    ],
)
@pytest.mark.parametrize("budget", [0, 1, 7, 1000])
def test_rate_is_never_negative_nor_above_one_whatever_the_tokens(section, budget):
    step = 7
    for tokens in (-5, 0, 1, 3, 500, 999, 1000, 1001, 10**15):
        assert 0.0 <= lr_scale(section, tokens, budget, step) <= 1.0
        assert 0.85 <= muon_momentum(section, tokens, budget) <= 0.95
        assert 0.0 <= decay_scale(section, tokens, budget) <= 1.0


def test_momentum_rises_and_stays():
    section = ScheduleSection(momentum_ramp_share=0.1)
    found = [muon_momentum(section, tokens, 1000) for tokens in (0, 50, 100, 1000)]
    assert found == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_weight_decay_falls_in_a_line_and_stays():
    section = ScheduleSection(final_decay_share=0.2)
    found = [decay_scale(section, tokens, 1000) for tokens in (-1, 0, 500, 1000, 9999)]
    assert found == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])
    assert decay_scale(ScheduleSection(final_decay_share=1.0), 700, 1000) == 1.0


shares = st.floats(0, 1)
sections = st.builds(
    ScheduleSection,
    warmup_share=shares,
    warmdown_share=shares,
    final_lr_share=shares,
    momentum_ramp_share=shares,
    final_decay_share=shares,
)
anything = st.integers(-(10**18), 10**18)


@given(sections, anything, anything, st.integers(0, 10**9), st.floats(0, 0.999))
def test_schedules_are_total_and_never_negative(section, tokens, budget, step, final):
    assert 0.0 <= progress(tokens, budget) <= 1.0
    assert 0.0 <= lr_scale(section, tokens, budget, step) <= 1.0
    assert section.final_decay_share <= decay_scale(section, tokens, budget) <= 1.0 + 1e-9
    momentum = muon_momentum(section, tokens, budget, final)
    assert 0.0 <= momentum < 1.0
    assert min(0.85, final) - 1e-9 <= momentum <= final + 1e-9


@given(sections, st.integers(0, 10**9), st.integers(1, 10**10), st.integers(0, 10**9))
def test_beyond_the_budget_every_schedule_stays_where_it_ended(section, more, budget, step):
    at_the_end = rates(section, budget, budget, step, 0.95)
    assert rates(section, budget + more, budget, step, 0.95) == at_the_end


def test_the_first_step_is_taken_with_its_share_of_the_warm_up():
    section = ScheduleSection(warmup_share=0.25, warmdown_share=0.5)
    found = [lr_scale(section, step * 64, 16 * 64, 64) for step in range(16)]
    assert found[:9] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert found[9:] == [7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert lr_scale(ScheduleSection(warmup_share=1e-9), 0, 16 * 64, 64) == 1.0


def taken_with(section, orders, step_tokens, budget):
    """What each local step of these orders is trained with, by the trainer's own clock."""
    return [
        rates(section, order.tokens_before(done, step_tokens), budget, step_tokens, 0.95)
        for order in orders
        for done, _ in enumerate(order.steps())
    ]


@given(sections, st.integers(1, 6), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_schedules_are_the_same_whatever_the_number_of_sites(section, sites, rounds):
    """n local steps at each of k sites see the schedule of every k-th of n k steps at one."""
    batch, budget = 64, 64 * 100
    alone, together, tokens, first = [], [], 0, 0
    for steps in rounds:
        alone.append(TrainOrder(((0, first, first + sites * steps),), tokens, 1))
        together.append(TrainOrder(((0, first, first + steps),), tokens, sites))
        tokens, first = tokens + sites * steps * batch, first + sites * steps
    of_one = taken_with(section, alone, batch, budget)
    assert taken_with(section, together, batch, budget) == of_one[::sites]
    assert of_one[0].lr_scale > 0 or section.final_lr_share == 0 < section.warmdown_share
