"""What a signal source of the outside can be asked; `livefeed.py` and `energy fetch` ask it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from uncurtail.core.received import Foretold, gaps_as_unknown
from uncurtail.core.signals import Signal, Trace


@dataclass(frozen=True, slots=True)
class Point:
    """A value in the source's unit, NaN where it does not know, as published at `t` (unix)."""

    t: float
    value: float


class Source(Protocol):
    """A service that publishes a signal by region. Every call may take seconds, or fail."""

    name: str
    signal: Signal
    period_s: float  # between two publications
    poll_wall_s: float  # how often asking makes sense
    longest_s: float  # what one call of `history` may span

    def latest(self, region: str) -> Point:
        """The newest value, with the time at which it was published.

        Raises:
            SourceError: The source does not answer, refuses, or talks nonsense.
        """
        ...

    def history(self, region: str, start: float, end: float) -> list[Point]:
        """The values at times in [start, end), rising; at most `longest_s` apart.

        Raises:
            SourceError: As for `latest`.
        """
        ...

    def readable(self) -> list[str]:
        """The regions that can be asked for with these credentials, as far as the source tells.

        Raises:
            SourceError: As for `latest`.
        """
        ...

    def forecast(self, region: str, now: float, horizon_s: float) -> Foretold | None:
        """What the source expects from about `now` on; None when it makes no forecasts.

        `horizon_s` is how far ahead anybody looks; a source may say more, or less.

        Raises:
            SourceError: As for `latest`.
        """
        ...


def rising(points: Iterable[Point], start: float, end: float) -> list[Point]:
    """The points in [start, end) by time; of two at one time the later said holds."""
    inside = {point.t: point for point in points if start <= point.t < end}
    return [inside[t] for t in sorted(inside)]


def as_trace(points: list[Point], period_s: float, signal: Signal) -> Trace | None:
    """The points held stepwise, the last for one period; gaps and what cannot be are unknown."""
    if not points:
        return None
    said = [point.value if signal.plausible(point.value) else np.nan for point in points]
    times, values = gaps_as_unknown([point.t for point in points], said, period_s)
    return Trace(np.array(times), np.array(values), points[-1].t + period_s, signal)
