"""A Vessim simulation that runs elsewhere, read through its REST API (0.16)."""

from typing import Any
from urllib.parse import quote

from uncurtail.adapters.http import Http, SourceError, expecting, number
from uncurtail.adapters.sources import Point, rising
from uncurtail.core.events import unix
from uncurtail.core.received import Foretold
from uncurtail.core.signals import Signal

MOST_STEPS = 100_000


class VessimApi:
    """A region is one of the simulation's microgrids, the intensity one of its grid signals.

    The time is the simulation's: it must run at the wall clock's (`Environment.live()`), or every
    value is stale or from the future, and so unknown. The API has no authentication, and whoever
    can reach it can also change the simulation: keep it on a network of your own.
    """

    name = "Vessim"
    period_s = 60.0
    poll_wall_s = 5.0
    longest_s = float("inf")

    def __init__(
        self, url: str, grid_signal: str, *, signal: Signal | None = None, read_s: float = 10.0
    ) -> None:
        """`grid_signal` is the name of a grid signal in gCO2/kWh."""
        self.signal = signal or Signal(source="vessim")
        self._grid_signal = grid_signal
        self._http = Http(self.name, url, read_s=read_s)

    def latest(self, region: str) -> Point:
        """See `Source.latest`."""
        return self._point(self._get(region))

    def history(self, region: str, start: float, end: float) -> list[Point]:
        """See `Source.history`: what the simulation still remembers."""
        answer = self._get(region, f"/history?limit={MOST_STEPS}")
        with expecting(self.name):
            return rising([self._point(state) for state in answer["data"]], start, end)

    def forecast(self, region: str, now: float, horizon_s: float = 0.0) -> Foretold | None:
        """Vessim makes none."""
        return None

    def readable(self) -> list[str]:
        """See `Source.readable`: the simulation's microgrids."""
        with expecting(self.name):
            return sorted(map(str, self._http.get("/microgrids")))

    def _point(self, state: Any) -> Point:
        with expecting(self.name):
            signals = state["grid_signals"] or {}
            if self._grid_signal not in signals:
                known = ", ".join(sorted(signals)) or "none"
                raise SourceError(
                    f"{self.name} has no grid signal {self._grid_signal!r}, it has {known}: set "
                    "energy.vessim_signal"
                )
            return Point(unix(state["time"]), number(signals[self._grid_signal]))

    def _get(self, region: str, rest: str = "") -> Any:
        try:
            return self._http.get(f"/microgrids/{quote(region, safe='')}{rest}")
        except SourceError as error:
            if error.status != 404:
                raise
            known = ", ".join(self.readable()) or "none"
            raise SourceError(
                f"{error}: asked for microgrid {region!r}, it has {known}", status=404
            ) from None
