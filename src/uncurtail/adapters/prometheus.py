"""Prometheus: measured power, or any other signal that a query yields."""

import math
from collections.abc import Mapping
from typing import Any

from uncurtail.adapters.http import Http, SourceError, expecting, number
from uncurtail.adapters.sources import Point, rising
from uncurtail.core.received import Foretold
from uncurtail.core.signals import Signal

MOST_POINTS = 10_000  # Prometheus answers at most 11,000 a series


class Prometheus:
    """One server, and a query that `{region}` makes one for each region.

    A value's publication time is its sample's, which Prometheus tells for a plain selector
    (`timestamp(...)`); for an expression it tells the time of evaluation, and then a target that
    died is noticed only when Prometheus drops its series, after five minutes.
    """

    name = "Prometheus"
    poll_wall_s = 15.0

    def __init__(
        self,
        url: str,
        query: str | Mapping[str, str],
        *,
        credentials: str | tuple[str, str] | None = None,
        signal: Signal | None = None,
        period_s: float = 300.0,
        read_s: float = 10.0,
    ) -> None:
        """`credentials` are a bearer token, or a user name and a password.

        Instead of one query with `{region}` there may be one for each region.
        """
        self.signal = signal or Signal(source="prometheus")
        self.period_s = period_s
        self.longest_s = MOST_POINTS * period_s
        self._query = query
        bearer = credentials if isinstance(credentials, str) else None
        self._account = None if isinstance(credentials, str) else credentials
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        self._http = Http(self.name, url, headers=headers, read_s=read_s)

    def latest(self, region: str) -> Point:
        """See `Source.latest`."""
        return self.instant(self._of(region))

    def history(self, region: str, start: float, end: float) -> list[Point]:
        """See `Source.history`; values at multiples of `period_s` after `start`."""
        return rising(self.range(self._of(region), start, end, self.period_s), start, end)

    def forecast(self, region: str, now: float, horizon_s: float = 0.0) -> Foretold | None:
        """Prometheus knows the past alone."""
        return None

    def readable(self) -> list[str]:
        """Any region that the query knows: Prometheus has no list of its own."""
        return []

    def instant(self, query: str) -> Point:
        """The query's value now, and when its sample was taken.

        Raises:
            SourceError: As for `Source.latest`, or the query yields no series, or several.
        """
        value = self._ask("query", {"query": query})
        stamp = self._ask("query", {"query": f"timestamp({query})"})
        with expecting(self.name):
            taken = number(_only(stamp, query)["value"][1])
            if math.isnan(taken):
                raise ValueError(f"timestamp {stamp}")
            return Point(taken, number(_only(value, query)["value"][1]))

    def range(self, query: str, start: float, end: float, step_s: float) -> list[Point]:
        """The query's values at start, start + step_s, ... up to `end`.

        Raises:
            SourceError: As for `instant`; no series is an empty list.
        """
        span: dict[str, str | float] = {"query": query, "start": start, "end": end, "step": step_s}
        answer = self._ask("query_range", span)
        with expecting(self.name):
            if not answer["result"]:
                return []
            rows = _only(answer, query)["values"]
            return [Point(number(t), number(value)) for t, value in rows]

    def _of(self, region: str) -> str:
        if isinstance(self._query, str):
            return self._query.replace("{region}", region)
        return self._query[region]

    def _ask(self, what: str, params: Mapping[str, str | float]) -> Any:
        try:
            answer = self._http.get(f"/api/v1/{what}", params, auth=self._account)
        except SourceError as error:
            if error.status not in (401, 403):
                raise
            raise SourceError(
                f"{error}: check UNCURTAIL_PROMETHEUS_TOKEN, or UNCURTAIL_PROMETHEUS_USERNAME and "
                "UNCURTAIL_PROMETHEUS_PASSWORD",
                status=error.status,
            ) from None
        with expecting(self.name):
            if answer["status"] != "success":
                raise SourceError(f"{self.name}: {answer.get('error', 'the query failed')}")
            return answer["data"]


def _only(data: Any, query: str) -> Any:
    if len(data["result"]) == 1:
        return data["result"][0]
    found = len(data["result"]) or "no"
    raise SourceError(
        f"Prometheus has {found} series for {query}: write a query that yields one, as sum(...)"
    )
