"""Leases: every step of the corpus is free, on lease or consumed, and never two of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uncurtail.core.leases import FreeSteps, Interval, count_steps, split


def steps_of(intervals) -> list[tuple[int, int]]:
    return [(epoch, step) for epoch, start, stop in intervals for step in range(start, stop)]


def test_a_fresh_corpus_is_leased_lowest_first_and_epoch_by_epoch():
    first, free = FreeSteps(10).take(4)
    second, free = free.take(4)
    third, free = free.take(4)
    fourth, free = free.take(4)
    assert [first, second, third, fourth] == [
        ((0, 0, 4),),
        ((0, 4, 8),),
        ((0, 8, 10),),  # no lease crosses an epoch, even if it is short
        ((1, 0, 4),),
    ]
    assert free == FreeSteps(10, 2, ((1, 4, 10),))


def test_what_was_given_back_is_leased_again_before_anything_newer():
    lease, free = FreeSteps(10).take(6)
    free = free.give_back([(0, 1, 3), (0, 5, 6)])
    again, free = free.take(4)
    assert lease == ((0, 0, 6),)
    assert again == ((0, 1, 3), (0, 5, 7))
    assert free.intervals == ((0, 7, 10),)


def test_a_new_epoch_opens_only_when_everything_before_it_is_leased():
    _, free = FreeSteps(4).take(4)
    free = free.give_back([(0, 2, 3)])
    late, free = free.take(100)
    assert late == ((0, 2, 3),)
    assert free.next_epoch == 1
    assert free.take(100)[0] == ((1, 0, 4),)


def test_steps_of_an_older_epoch_come_before_those_of_a_newer_one():
    _, free = FreeSteps(4).take(4)
    newer, free = free.take(2)
    free = free.give_back([(0, 3, 4)])
    assert newer == ((1, 0, 2),)
    assert free.take(4)[0] == ((0, 3, 4),)


def test_neighbours_that_come_back_are_one_interval_again():
    lease, free = FreeSteps(10).take(10)
    assert free.intervals == ()
    pieces = [(0, 6, 10), (0, 0, 2), (0, 2, 6), (0, 4, 4)]
    assert free.give_back(pieces).intervals == lease


@pytest.mark.parametrize(
    "twice",
    [
        pytest.param([(0, 4, 5)], id="inside-what-is-free"),
        pytest.param([(0, 0, 10)], id="around-what-is-free"),
        pytest.param([(0, 3, 5)], id="across-its-edge"),
        pytest.param([(0, 0, 2), (0, 1, 3)], id="among-themselves"),
    ],
)
def test_a_step_that_would_be_free_twice_is_an_error(twice):
    free = FreeSteps(10).take(4)[1]
    with pytest.raises(ValueError, match="free twice"):
        free.give_back(twice)


@pytest.mark.parametrize(
    ("free", "count"), [(FreeSteps(10), 0), (FreeSteps(10), -1), (FreeSteps(0), 1)]
)
def test_a_lease_of_nothing_is_an_error(free, count):
    with pytest.raises(ValueError, match="at least one"):
        free.take(count)


intervals = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 8)), max_size=6
).map(lambda items: tuple((epoch, start, start + length) for epoch, start, length in items))


@settings(deadline=None)
@given(intervals, st.data())
def test_a_split_is_the_prefix_in_order_and_the_rest(leased, data):
    steps = data.draw(st.integers(0, count_steps(leased)))
    consumed, rest = split(leased, steps)
    assert steps_of(consumed) == steps_of(leased)[:steps]
    assert steps_of(rest) == steps_of(leased)[steps:]
    assert all(start < stop for _, start, stop in (*consumed, *rest))


@settings(deadline=None)
@given(intervals, st.integers(1, 50))
def test_no_more_than_the_lease_can_be_split_off(leased, excess):
    for steps in (count_steps(leased) + excess, -excess):
        with pytest.raises(ValueError, match="not a prefix"):
            split(leased, steps)


class Leasing(RuleBasedStateMachine):
    """Sites take leases, consume a prefix, and give back the rest, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.per_epoch = 7
        self.free = FreeSteps(self.per_epoch)
        self.out: list[tuple[Interval, ...]] = []
        self.consumed: list[tuple[int, int]] = []

    @rule(count=st.integers(1, 12))
    def take(self, count):
        could = steps_of(self.free.intervals) or [
            (self.free.next_epoch, step) for step in range(self.per_epoch)
        ]
        lease, self.free = self.free.take(count)
        same_epoch = [step for step in could if step[0] == could[0][0]]
        assert steps_of(lease) == same_epoch[:count], "lowest first, never across an epoch"
        self.out.append(lease)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def hand_in(self, data):
        lease = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        consumed, rest = split(lease, data.draw(st.integers(0, count_steps(lease))))
        self.free = self.free.give_back(rest)
        self.consumed += steps_of(consumed)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def hand_in_twice(self, data):
        lease = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.free = self.free.give_back(lease)
        with pytest.raises(ValueError, match="free twice"):
            self.free.give_back(lease)

    @invariant()
    def every_step_of_every_opened_epoch_is_in_exactly_one_place(self):
        on_lease = [step for lease in self.out for step in steps_of(lease)]
        everything = sorted(steps_of(self.free.intervals) + on_lease + self.consumed)
        opened = range(self.free.next_epoch)
        assert everything == [(e, s) for e in opened for s in range(self.per_epoch)]

    @invariant()
    def what_is_free_is_sorted_and_in_as_few_pieces_as_can_be(self):
        assert list(self.free.intervals) == sorted(self.free.intervals)
        assert self.free.give_back([]) == self.free


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
