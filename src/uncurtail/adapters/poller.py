"""Asks a source for each region's newest value and forecast, in a thread that no tick waits for."""

import logging
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

from uncurtail.adapters import clock
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.sources import Point, Source
from uncurtail.core.events import iso
from uncurtail.core.received import Foretold, refusal

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


@dataclass(frozen=True, slots=True)
class Foresight:
    """How forecasts are asked for: how often, how far ahead, and when one is too old."""

    every_wall_s: float
    horizon_s: float
    stale_after_s: float


@dataclass(slots=True)
class _Asked:
    """One thing that is asked for again and again: a region's newest value, or its forecast."""

    region: str
    due: float = -math.inf  # monotonic
    failures: int = 0
    error: str | None = None
    newest: Point | Foretold | None = None


class Poller:
    """One thread for all regions of a source.

    A failure is retried with growing pauses, at least as long as the server asked for, and kept as
    `trouble` while it lasts. A source that answers with values that grow old is trouble too. A
    forecast that fails takes nothing from the values.
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
        self._values = [_Asked(region) for region in regions]
        self._foresight: Foresight | None = None
        self._forecasts: list[_Asked] = []
        self._every_s = every_wall_s
        self._stale_after_s = stale_after_s
        self._random = random.Random(seed)
        self._wall = wall
        self._arrived: SimpleQueue[Arrival] = SimpleQueue()
        self._foretold: SimpleQueue[tuple[str, Foretold]] = SimpleQueue()
        self._lock = Lock()
        self._stop = Event()

    def foresee(self, foresight: Foresight) -> None:
        """Ask for forecasts as well; to be called before `start`."""
        self._foresight = foresight
        self._forecasts = [_Asked(asked.region) for asked in self._values]

    def start(self) -> None:
        """Begin to ask. The thread must not keep a process alive that wants to end."""
        Thread(target=self._run, name=f"poll {self._source.name}", daemon=True).start()

    def close(self) -> None:
        """Ask no more; a request that is under way ends by its timeout."""
        self._stop.set()

    def take(self) -> list[Arrival]:
        """What arrived since the last call, in order."""
        return _emptied(self._arrived)

    def take_forecasts(self) -> list[tuple[str, Foretold]]:
        """The forecasts that arrived since the last call, each with its region, in order."""
        return _emptied(self._foretold)

    @property
    def trouble(self) -> str | None:
        """What fails now, the first region's in full; None while nothing does."""
        with self._lock:
            lines = [*map(self._ill, self._values), *map(self._blind, self._forecasts)]
        found = [line for line in lines if line is not None]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{found[0]}{more}" if found else None

    def due_in_s(self) -> float:
        """Seconds until the next request; 0 when one is due or under way, infinite without any."""
        with self._lock:
            due = min((one.due for one in (*self._values, *self._forecasts)), default=math.inf)
        return max(0.0, due - clock.monotonic())

    def poll(self) -> None:
        """Ask for everything that is due. Never raises."""
        for asked in self._values:
            self._ask(asked, self._ask_value)
        for asked in self._forecasts:
            self._ask(asked, self._ask_forecast)

    def _ask(self, asked: _Asked, ask: Callable[[_Asked], None]) -> None:
        if self._stop.is_set() or asked.due > clock.monotonic():
            return
        try:
            ask(asked)
        except SourceError as error:
            self._failed(asked, error)
        # A bug in an adapter must show up as trouble and unknown power, not as a dead thread.
        except Exception as error:
            log.exception("%s failed", self._source.name)
            said = f"{self._source.name}: {type(error).__name__}: {error}"
            self._failed(asked, SourceError(said))

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(min(self.due_in_s(), LONGEST_PAUSE_S))

    def _ask_value(self, asked: _Asked) -> None:
        point = self._source.latest(asked.region)
        plausible = self._source.signal.plausible(point.value)
        self._came(asked, point, self._every_s, None if plausible else self._absurd(asked, point))
        self._arrived.put(Arrival(asked.region, self._wall(), point))

    def _ask_forecast(self, asked: _Asked) -> None:
        assert self._foresight is not None
        said = self._source.forecast(asked.region, self._wall(), self._foresight.horizon_s)
        if said is None:
            raise SourceError(f"{self._source.name} has no forecast of {asked.region}")
        self._came(asked, said, self._foresight.every_wall_s, None)
        self._foretold.put((asked.region, said))

    def _came(
        self, asked: _Asked, newest: Point | Foretold, every_s: float, error: str | None
    ) -> None:
        with self._lock:
            asked.failures = 0
            asked.error = error
            asked.newest = newest
            asked.due = clock.monotonic() + every_s * self._random.uniform(0.9, 1.1)

    def _failed(self, asked: _Asked, error: SourceError) -> None:
        with self._lock:
            asked.failures += 1
            pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(asked.failures - 1, 20))
            if error.status in REFUSED:
                pause_s = LAST_RETRY_S
            pause_s *= 1.0 - JITTER * self._random.random()
            asked_s = min(error.retry_after_s or 0.0, LONGEST_PAUSE_S)
            asked.error = str(error)
            asked.due = clock.monotonic() + max(pause_s, asked_s)

    def _absurd(self, asked: _Asked, point: Point) -> str:
        said = f"says {point.value:g} {self._source.signal.unit}"
        if math.isnan(point.value):
            said = "gives no number"
        return f"{self._source.name} {said} for {asked.region}: taken as unknown"

    def _ill(self, asked: _Asked) -> str | None:
        if asked.error is not None or not isinstance(asked.newest, Point):
            return asked.error
        age_s = self._wall() - asked.newest.t
        if abs(age_s) <= self._stale_after_s:
            return None
        when = f"{abs(age_s) / 60:.0f} min {'old' if age_s > 0 else 'ahead of our clock'}"
        return (
            f"{self._source.name} answers, but its newest value of {asked.region} is of "
            f"{iso(asked.newest.t)}, {when}: taken as unknown"
        )

    def _blind(self, asked: _Asked) -> str | None:
        assert self._foresight is not None
        if asked.error is not None:
            return f"no forecast: {asked.error}"
        if not isinstance(asked.newest, Foretold):
            return None
        why = refusal(asked.newest, self._wall(), self._foresight.stale_after_s)
        if why is None:
            return None
        return f"the forecast of {self._source.name} for {asked.region} {why}: not used"


T = TypeVar("T")


def _emptied(queue: "SimpleQueue[T]") -> list[T]:
    taken: list[T] = []
    try:
        while True:
            taken.append(queue.get_nowait())
    except Empty:
        return taken
