"""Stage 4: which steps of the corpus each site trains: every one exactly once.

The unit is one global step of a data epoch. An interval is (data_epoch, start, stop): the steps
[start, stop). What is neither consumed by a committed update nor out on lease is free.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class FreeSteps:
    """The free steps, lowest first, and the next data epoch that was not opened yet.

    `steps_per_epoch` is what the corpus holds; the tail below one step is never leased.
    """

    steps_per_epoch: int
    next_epoch: int = 0
    intervals: tuple[Interval, ...] = ()

    def take(self, count: int) -> tuple[tuple[Interval, ...], "FreeSteps"]:
        """Lease up to `count` steps of one data epoch, lowest first.

        A new epoch opens only when everything before it is leased, and no lease crosses an epoch,
        so fewer than `count` steps may come back, but never none.
        """
        if count < 1 or self.steps_per_epoch < 1:
            raise ValueError("a lease needs at least one step, and a corpus of at least one")
        free = self
        if not free.intervals:
            opened = (free.next_epoch, 0, free.steps_per_epoch)
            free = FreeSteps(free.steps_per_epoch, free.next_epoch + 1, (opened,))
        epoch = free.intervals[0][0]
        taken: list[Interval] = []
        rest: list[Interval] = []
        for interval in free.intervals:
            wanted = count - count_steps(taken)
            if interval[0] != epoch or wanted <= 0:
                rest.append(interval)
                continue
            _, start, stop = interval
            cut = min(stop, start + wanted)
            taken.append((epoch, start, cut))
            if cut < stop:
                rest.append((epoch, cut, stop))
        return tuple(taken), FreeSteps(free.steps_per_epoch, free.next_epoch, tuple(rest))

    def give_back(self, intervals: Iterable[Interval]) -> "FreeSteps":
        """Return steps that no committed update consumed.

        Raises:
            ValueError: A step is already free: it would be trained twice.
        """
        merged: list[Interval] = []
        for epoch, start, stop in sorted([*self.intervals, *intervals]):
            if start >= stop:
                continue
            if merged and merged[-1][0] == epoch and start < merged[-1][2]:
                raise ValueError(f"steps {start}..{merged[-1][2]} of epoch {epoch} are free twice")
            if merged and merged[-1][0] == epoch and start == merged[-1][2]:
                merged[-1] = (epoch, merged[-1][1], stop)
            else:
                merged.append((epoch, start, stop))
        return FreeSteps(self.steps_per_epoch, self.next_epoch, tuple(merged))


def count_steps(intervals: Iterable[Interval]) -> int:
    """How many steps the intervals hold."""
    return sum(stop - start for _, start, stop in intervals)


def split(
    intervals: Sequence[Interval], steps: int
) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    """The consumed prefix of `steps` steps, and the unconsumed rest."""
    if not 0 <= steps <= count_steps(intervals):
        raise ValueError(f"{steps} steps are not a prefix of {list(intervals)}")
    prefix: list[Interval] = []
    rest: list[Interval] = []
    for epoch, start, stop in intervals:
        cut = min(stop, start + steps)
        steps -= cut - start
        prefix += [(epoch, start, cut)] if cut > start else []
        rest += [(epoch, cut, stop)] if stop > cut else []
    return tuple(prefix), tuple(rest)
