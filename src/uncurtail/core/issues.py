"""Stage 1: which forecast is in force: issued every so often, each by the readings up to then."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from uncurtail.core import forecasts
from uncurtail.core.forecasts import Forecast, ForecastKind, Noise
from uncurtail.core.signals import Trace


@dataclass(frozen=True, slots=True)
class Issuing:
    """How forecasts are issued: what kind, how far ahead, how often (s), and how noisy."""

    kind: ForecastKind
    horizon_s: float = 86400.0
    every_s: float = 900.0
    noise: Noise = field(default_factory=Noise)


class Issues:
    """The newest forecast of each site; made when asked for, and the same whenever it is made.

    `trace(site)` holds the site's readings: all of them for "perfect" and "noisy", else those up to
    now; what lies behind the time of issue is not looked at.
    """

    def __init__(self, issuing: Issuing, trace: Callable[[str], Trace], start: float) -> None:
        """The first issue is at `start`."""
        self._issuing = issuing
        self._trace = trace
        self._start = start
        self._newest: dict[str, tuple[float, Forecast | None]] = {}

    def forecast(self, site: str, now: float) -> Forecast | None:
        """What was issued last; None when nothing could be said."""
        issued = self._issued(now)
        found = self._newest.get(site)
        if found is None or found[0] != issued:
            found = issued, self._make(site, issued)
            self._newest[site] = found
        return found[1]

    def renewed(self, now: float) -> float:
        """When the next ones come."""
        if self._issuing.kind == "none":
            return math.inf
        return self._issued(now) + self._issuing.every_s

    def _issued(self, now: float) -> float:
        every_s = self._issuing.every_s
        return self._start + max(0.0, math.floor((now - self._start) / every_s)) * every_s

    def _make(self, site: str, issued: float) -> Forecast | None:
        horizon_s = self._issuing.horizon_s
        match self._issuing.kind:
            case "none":
                return None
            case "persistence":
                return forecasts.persistence(self._trace(site), site, issued, horizon_s)
            case "climatology":
                return forecasts.climatology(self._trace(site), site, issued, horizon_s)
            case "perfect":
                return forecasts.perfect(self._trace(site), site, issued, horizon_s)
            case "noisy":
                noise = self._issuing.noise
                return forecasts.noisy(self._trace(site), site, issued, horizon_s, noise)
