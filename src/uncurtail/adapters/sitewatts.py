"""The power that sites measured of themselves, as it comes with their heartbeats."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from uncurtail.adapters import clock
from uncurtail.core.measured import signal
from uncurtail.core.orders import Watts
from uncurtail.core.signals import Reading


class Heard(Protocol):
    """Where the newest measurement of each site is found."""

    @property
    def watts(self) -> Mapping[str, Watts]:
        """By site; one that measures nothing is not there."""
        ...


class SiteWatts:
    """A `ports.Signals` over what the state plane last heard; each measurement is told once."""

    trouble: str | None = None  # the state plane's own troubles are told by it

    def __init__(self, heard: Heard, wall: Callable[[], float] = clock.wall) -> None:
        self._heard = heard
        self._wall = wall
        self._told: dict[str, tuple[int, float]] = {}

    def readings(self, after: float, until: float) -> list[Reading]:
        """What became known since the last call, at `until`, the simulated now."""
        found: list[Reading] = []
        for site, watts in self._heard.watts.items():
            stamp = (watts.session, watts.wall_s)
            if stamp <= self._told.get(site, (0, -math.inf)):
                continue
            self._told[site] = stamp
            published = round(until - (self._wall() - watts.wall_s), 3)
            found.append(Reading(site, until, watts.watts, published, signal(watts.source)))
        return found

    def next_change(self, now: float) -> float:
        """Unknown: the loop hears heartbeats whenever it ticks."""
        return math.inf
