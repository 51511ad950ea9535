"""Asks a source for every region's newest value, in a thread that no tick ever waits for."""

import logging
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

from uncurtail.adapters import clock
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.sources import Point, Source
from uncurtail.core.events import iso

log = logging.getLogger("uncurtail.energy")

FIRST_RETRY_S = 2.0
LAST_RETRY_S = 300.0
# What the user must mend first is not asked for again and again.
REFUSED = (401, 403)
LONGEST_PAUSE_S = 3600.0
JITTER = 0.5  # a retry comes after 50-100 % of its pause, so that many of us do not come at once


@dataclass(frozen=True, slots=True)
class Arrival:
    """A point, and when it arrived by the wall clock."""

    region: str
    wall_s: float
    point: Point


@dataclass(slots=True)
class _Region:
    due: float = -math.inf  # monotonic
    failures: int = 0
    error: str | None = None
    newest: Point | None = None


class Poller:
    """One thread for all regions of a source.

    A failure is retried with growing pauses, at least as long as the server asked for, and kept as
    `trouble` while it lasts. A source that answers with values that grow old is trouble too.
    """

    def __init__(
        self,
        source: Source,
        regions: Iterable[str],
        *,
        every_wall_s: float,
        stale_after_s: float,
        seed: int,
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        """Nothing is asked before `start`, or `poll`; equal seeds give equal pauses."""
        self._source = source
        self._regions = {region: _Region() for region in regions}
        self._every_s = every_wall_s
        self._stale_after_s = stale_after_s
        self._random = random.Random(seed)
        self._wall = wall
        self._arrived: SimpleQueue[Arrival] = SimpleQueue()
        self._lock = Lock()
        self._stop = Event()

    def start(self) -> None:
        """Begin to ask. The thread must not keep a process alive that wants to end."""
        Thread(target=self._run, name=f"poll {self._source.name}", daemon=True).start()

    def close(self) -> None:
        """Ask no more; a request that is under way ends by its timeout."""
        self._stop.set()

    def take(self) -> list[Arrival]:
        """What arrived since the last call, in order."""
        taken: list[Arrival] = []
        try:
            while True:
                taken.append(self._arrived.get_nowait())
        except Empty:
            return taken

    @property
    def trouble(self) -> str | None:
        """What fails now, the first region's in full; None while nothing does."""
        with self._lock:
            found = [
                line for name, region in self._regions.items() if (line := self._ill(name, region))
            ]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{found[0]}{more}" if found else None

    def due_in_s(self) -> float:
        """Seconds until the next request; 0 when one is due or under way, infinite without any."""
        with self._lock:
            due = min((region.due for region in self._regions.values()), default=math.inf)
        return max(0.0, due - clock.monotonic())

    def poll(self) -> None:
        """Ask for every region that is due. Never raises."""
        for name, region in self._regions.items():
            if self._stop.is_set() or region.due > clock.monotonic():
                continue
            try:
                point = self._source.latest(name)
            except SourceError as error:
                self._failed(region, error)
            # A bug in an adapter must show up as trouble and unknown power, not as a dead thread.
            except Exception as error:
                log.exception("%s failed", self._source.name)
                said = f"{self._source.name}: {type(error).__name__}: {error}"
                self._failed(region, SourceError(said))
            else:
                self._came(name, region, point)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(min(self.due_in_s(), LONGEST_PAUSE_S))

    def _came(self, name: str, region: _Region, point: Point) -> None:
        plausible = self._source.signal.plausible(point.value)
        with self._lock:
            region.failures = 0
            region.error = None if plausible else self._absurd(name, point)
            region.newest = point
            region.due = clock.monotonic() + self._every_s * self._random.uniform(0.9, 1.1)
        self._arrived.put(Arrival(name, self._wall(), point))

    def _failed(self, region: _Region, error: SourceError) -> None:
        with self._lock:
            region.failures += 1
            pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(region.failures - 1, 20))
            if error.status in REFUSED:
                pause_s = LAST_RETRY_S
            pause_s *= 1.0 - JITTER * self._random.random()
            asked_s = min(error.retry_after_s or 0.0, LONGEST_PAUSE_S)
            region.error = str(error)
            region.due = clock.monotonic() + max(pause_s, asked_s)

    def _absurd(self, name: str, point: Point) -> str:
        said = f"says {point.value:g} {self._source.signal.unit}"
        if math.isnan(point.value):
            said = "gives no number"
        return f"{self._source.name} {said} for {name}: taken as unknown"

    def _ill(self, name: str, region: _Region) -> str | None:
        if region.error is not None or region.newest is None:
            return region.error
        age_s = self._wall() - region.newest.t
        if abs(age_s) <= self._stale_after_s:
            return None
        when = f"{abs(age_s) / 60:.0f} min {'old' if age_s > 0 else 'ahead of our clock'}"
        return (
            f"{self._source.name} answers, but its newest value of {name} is of "
            f"{iso(region.newest.t)}, {when}: taken as unknown"
        )
