"""WattTime v3: marginal (or average) emission rates by region, with the user's own account.

What it returns is licensed to that user: it goes into the user's cache and runs, nowhere else.
"""

import math
from collections.abc import Mapping
from threading import Lock
from typing import Any

from uncurtail.adapters import clock
from uncurtail.adapters.http import Http, SourceError, expecting, number
from uncurtail.adapters.sources import Point, as_trace, rising
from uncurtail.core.events import iso, unix
from uncurtail.core.received import Foretold
from uncurtail.core.signals import Kind, Signal

URL = "https://api.watttime.org"
G_PER_KWH_OF_LB_PER_MWH = 0.453592
UNITS = ("lbs_co2_per_mwh", "lb_co2_per_mwh")
# A token holds for 30 minutes: renewed before that, and once when it is refused earlier.
TOKEN_S = 25 * 60.0
DAY_S = 86_400.0
LONGEST_FORECAST_H = 72


class WattTime:
    """The account's view of WattTime.

    The newest value is the first point of the forecast with horizon 0 (WattTime's value for the
    current five minutes); where an account or a signal has no forecast, the last point of the past
    hour's history. Its publication time is the point's own time.
    """

    name = "WattTime"
    period_s = 300.0
    poll_wall_s = 60.0
    longest_s = 30 * DAY_S  # the API takes 32 days

    def __init__(
        self,
        username: str,
        password: str,
        *,
        kind: Kind = Kind.MARGINAL,
        url: str = URL,
        read_s: float = 10.0,
    ) -> None:
        self.signal = Signal(kind, source="watttime")
        self._type = "co2_moer" if kind is Kind.MARGINAL else "co2_aoer"
        self._account = (username, password)
        self._http = Http(self.name, url, read_s=read_s)
        self._token: str | None = None
        self._renew_at = -math.inf
        self._lock = Lock()
        self._without_forecast: set[str] = set()

    def latest(self, region: str) -> Point:
        """See `Source.latest`."""
        if region not in self._without_forecast:
            try:
                points = self._points("/v3/forecast", {"region": region, "horizon_hours": 0})
            except SourceError as error:
                if error.status not in (400, 403, 404):
                    raise
                self._without_forecast.add(region)
            else:
                if not points:
                    raise SourceError(f"{self.name} has no current value of {region}")
                return points[0]
        now = clock.wall()
        points = self.history(region, now - 3600.0, now + self.period_s)
        if not points:
            raise SourceError(f"{self.name} published nothing of {region} in the past hour")
        return points[-1]

    def history(self, region: str, start: float, end: float) -> list[Point]:
        """See `Source.history`."""
        last = end - 1.0  # WattTime's end is inclusive
        span = {"region": region, "start": iso(start), "end": iso(last)}
        return rising(self._points("/v3/historical", span), start, end)

    def forecast(self, region: str, now: float, horizon_s: float = DAY_S) -> Foretold | None:
        """See `Source.forecast`; up to 72 hours."""
        horizon_h = min(LONGEST_FORECAST_H, math.ceil(horizon_s / 3600.0))
        answer = self._answer("/v3/forecast", {"region": region, "horizon_hours": horizon_h})
        points = rising(self._rows(answer), now - self.period_s, math.inf)
        trace = as_trace(points, self.period_s, self.signal)
        if trace is None:
            return None
        with expecting(self.name):
            return Foretold(unix(answer["meta"]["generated_at"]), trace)

    def region_of(self, latitude: float, longitude: float) -> str:
        """The region of a place.

        Raises:
            SourceError: As for `Source.latest`.
        """
        place = {"latitude": latitude, "longitude": longitude}
        with expecting(self.name):
            return str(self._get("/v3/region-from-loc", place)["region"])

    def readable(self) -> list[str]:
        """See `Source.readable`: the regions whose signal this account may read."""
        answer = self._get("/v3/my-access", {})
        with expecting(self.name):
            return sorted(
                {
                    str(region["region"])
                    for item in answer["signal_types"]
                    if item["signal_type"] == self._type
                    for region in item["regions"]
                }
            )

    def _points(self, path: str, params: Mapping[str, str | int]) -> list[Point]:
        return self._rows(self._answer(path, params))

    def _answer(self, path: str, params: Mapping[str, str | int]) -> Any:
        try:
            return self._get(path, params)
        except SourceError as error:
            if error.status != 403:
                raise
            raise SourceError(self._forbidden(str(params["region"])), status=403) from None

    def _rows(self, answer: Any) -> list[Point]:
        with expecting(self.name):
            unit = answer["meta"]["units"]
            if unit not in UNITS:
                raise SourceError(f"{self.name} answered in {unit}, not in {UNITS[0]}")
            return [
                Point(unix(row["point_time"]), number(row["value"]) * G_PER_KWH_OF_LB_PER_MWH)
                for row in answer["data"]
            ]

    def _forbidden(self, region: str) -> str:
        said = f"{self.name}: this account may not read {region} (403)"
        try:
            may = self.readable()
        except SourceError:
            may = []
        listed = f"; it may read {', '.join(may[:8])}" if may else ""
        return f"{said}{listed}: a free account has CAISO_NORTH alone, others need a subscription"

    def _get(self, path: str, params: Mapping[str, str | int | float]) -> Any:
        params = {**params, "signal_type": self._type} if path != "/v3/my-access" else params
        bearer = self._bearer()
        try:
            return self._http.get(path, params, headers=bearer)
        except SourceError as error:
            if error.status != 401:
                raise
            self._token = None
        return self._http.get(path, params, headers=self._bearer())

    def _bearer(self) -> dict[str, str]:
        with self._lock:
            if self._token is None or clock.monotonic() >= self._renew_at:
                self._token = self._login()
                self._renew_at = clock.monotonic() + TOKEN_S
            return {"Authorization": f"Bearer {self._token}"}

    def _login(self) -> str:
        try:
            answer = self._http.get("/login", auth=self._account)
        except SourceError as error:
            if error.status not in (401, 403):
                raise
            raise SourceError(
                f"{self.name} refuses the user name or password ({error.status}): check "
                "WATTTIME_USERNAME and WATTTIME_PASSWORD",
                status=401,  # 403 would speak of a region
            ) from None
        with expecting(self.name):
            return str(answer["token"])
