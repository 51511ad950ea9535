"""The forecasts of a live source, as they arrive, for the policies of a run in real time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from uncurtail.adapters import clock
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.core.forecasts import Forecast
from uncurtail.core.received import Foretold, Trust, accepted, contradicted


@dataclass(frozen=True, slots=True)
class Bands:
    """What the policy calls clean and dirty, in g/kWh."""

    clean: float
    dirty: float


@dataclass(frozen=True, slots=True)
class _Held:
    said: Foretold  # by the wall clock, as it came
    made: float  # simulated
    forecast: Forecast


class SourceForecasts:
    """A `ports.Forecaster` over the forecasts that a `LiveFeed`'s poller fetches.

    As with readings, what arrived counts from the call that first sees it, and times are shifted
    by what simulated time lags behind the wall clock. No call waits for the source.
    """

    def __init__(
        self,
        sites: Mapping[str, str],
        feed: LiveFeed,
        trust: Trust,
        bands: Bands,
        record: Callable[[Forecast, float], None],
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        """`record` is given each forecast that is accepted, and when it was made (simulated)."""
        self._sites = dict(sites)
        self._feed = feed
        self._trust = trust
        self._bands = bands
        self._record = record
        self._wall = wall
        self._newest: dict[str, _Held] = {}

    def forecast(self, site: str, now: float) -> Forecast | None:
        """The newest that may be believed at `now`; None without one.

        One that the newest reading contradicts is left aside until a later reading agrees.
        """
        self._absorb(now)
        held = self._newest.get(site)
        if held is None or now - held.made > self._trust.stale_after_s:
            return None
        rows = self._feed.told(site)
        newest = rows[-1] if rows else None
        wrong = contradicted(held.forecast, newest, self._bands.clean, self._bands.dirty)
        return None if wrong or now >= held.forecast.until else held.forecast

    def renewed(self, now: float) -> float:
        """When one in force has nothing to say any more; for what arrives the feed wakes us."""
        ends = (
            min(held.made + self._trust.stale_after_s + 0.001, held.forecast.until)
            for held in self._newest.values()
        )
        return min((end for end in ends if end > now), default=math.inf)

    def _absorb(self, now: float) -> None:
        wall_s = self._wall()
        for region, said in self._feed.poller.take_forecasts():
            moved = said.later(now - wall_s)
            for site, of_region in self._sites.items():
                forecast = accepted(site, moved, now, self._trust) if of_region == region else None
                newest = self._newest.get(site)
                if forecast is None or (newest and not said.replaces(newest.said, wall_s)):
                    continue
                self._newest[site] = _Held(said, moved.made, forecast)
                self._record(forecast, moved.made)
