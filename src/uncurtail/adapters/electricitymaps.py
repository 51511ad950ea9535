"""Electricity Maps v3: the average carbon intensity of a zone, by the hour, with the user's token.

Average, not marginal: it says how clean the grid is, not whether one more kWh would be curtailed
otherwise. It is labelled so wherever it goes.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from uncurtail.adapters.http import Http, SourceError, expecting, number
from uncurtail.adapters.sources import Point, as_trace, rising
from uncurtail.core.events import iso, unix
from uncurtail.core.received import Foretold
from uncurtail.core.signals import Kind, Signal

URL = "https://api.electricitymaps.com"
DAY_S = 86_400.0


class ElectricityMaps:
    """The token's view of Electricity Maps; a region is one of its zones, such as DE.

    A value is published when Electricity Maps last updated it, but not after its hour ended: an
    hour that is over says nothing about now, however often it is updated.
    """

    name = "Electricity Maps"
    period_s = 3600.0
    poll_wall_s = 300.0  # 12 an hour and zone; a free token has 50
    longest_s = 10 * DAY_S

    def __init__(self, token: str, *, url: str = URL, read_s: float = 10.0) -> None:
        self.signal = Signal(Kind.AVERAGE, source="electricitymaps")
        self._http = Http(self.name, url, headers={"auth-token": token}, read_s=read_s)

    def latest(self, region: str) -> Point:
        """See `Source.latest`."""
        answer = self._get("latest", region)
        with expecting(self.name):
            hour = unix(answer["datetime"])
            updated = unix(answer["updatedAt"]) if answer.get("updatedAt") else hour
            published = min(updated, hour + self.period_s)
            return Point(published, number(answer["carbonIntensity"]))

    def history(self, region: str, start: float, end: float) -> list[Point]:
        """See `Source.history`. A plan without the past has the last 24 hours.

        Raises:
            SourceError: As there, or the plan does not reach back to `start`.
        """
        try:
            span = {"start": iso(start), "end": iso(end)}
            answer = self._get("past-range", region, span)
        except SourceError as error:
            if error.status not in (401, 403):
                raise
            points = self._points(self._get("history", region), "history")
            if not points or points[0].t > start + self.period_s:
                raise SourceError(
                    f"{error}; without that, Electricity Maps tells the last 24 hours: "
                    "ask for those, or use a plan with past data",
                    status=error.status,
                ) from None
            return rising(points, start, end)
        return rising(self._points(answer, "data"), start, end)

    def forecast(self, region: str, now: float, horizon_s: float = DAY_S) -> Foretold | None:
        """See `Source.forecast`; as far ahead as the plan reaches.

        An answer that does not say when it was made is as old as its first hour.
        """
        answer = self._get("forecast", region)
        everything = self._points(answer, "forecast")
        trace = as_trace(
            rising(everything, now - self.period_s, math.inf), self.period_s, self.signal
        )
        if trace is None:
            return None
        with expecting(self.name):
            updated = answer.get("updatedAt")
            return Foretold(unix(updated) if updated else everything[0].t, trace)

    def readable(self) -> list[str]:
        """See `Source.readable`: the zones that are listed for this token."""
        try:
            answer = self._http.get("/v3/zones")
        except SourceError as error:
            raise SourceError(
                f"{error}: check ELECTRICITYMAPS_TOKEN", status=error.status
            ) from None
        with expecting(self.name):
            return sorted(answer.keys())

    def _points(self, answer: Any, key: str) -> list[Point]:
        with expecting(self.name):
            rows: Iterable[Any] = answer[key]
            return [Point(unix(row["datetime"]), number(row["carbonIntensity"])) for row in rows]

    def _get(self, what: str, region: str, params: Mapping[str, str] | None = None) -> Any:
        try:
            return self._http.get(
                f"/v3/carbon-intensity/{what}", {"zone": region, **(params or {})}
            )
        except SourceError as error:
            remedy = {
                401: "check ELECTRICITYMAPS_TOKEN",
                403: f"this token may not read {what} of {region}: its plan names its zones",
                404: f"check the zone {region}",
            }.get(error.status or 0)
            if remedy is None:
                raise
            raise SourceError(f"{error}: {remedy}", status=error.status) from None
