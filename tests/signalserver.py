"""A local server that speaks the documented protocols of WattTime, Electricity Maps and Prometheus.

Values are a function of time, so tests know what is true. Faults are scripted: each is used up by
the requests it hits.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.scripted import listening, take
from uncurtail.core.events import iso, unix

USER, PASSWORD, TOKEN = "someone", "a-secret-word", "a-secret-token"
LB_PER_MWH_OF_G_PER_KWH = 1 / 0.453592
SLOT_S, HOUR_S = 300.0, 3600.0


def sawtooth(t: float) -> float:
    """gCO2/kWh that differs from slot to slot."""
    return 20.0 + (t // SLOT_S) % 40


@dataclass
class Fault:
    """`kind` is a status, or slow, truncated, not-json, nonsense; `where` is in path and query."""

    kind: str
    where: str = "/v3/"
    times: int | None = None  # None: for ever
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class SignalServer:
    """What is published, by whom it may be read, and what was asked."""

    url: str = ""
    value: Callable[[float], Any] = sawtooth  # gCO2/kWh, or anything that JSON can say
    foretold: Callable[[float], Any] | None = None  # what forecasts say; unset: the truth
    now: Callable[[], float] = time.time
    frozen_at: float | None = None
    skew_s: float = 0.0  # the server's clock against ours
    allowed: tuple[str, ...] = ("CAISO_NORTH",)
    forecasts: bool = True
    past: bool = True  # whether the Electricity Maps plan has past data
    token: str = "token-0"
    logins: int = 0
    gaps: set[float] = field(default_factory=set)  # slots that are not there
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)  # ends a slow answer

    @property
    def time(self) -> float:
        return (self.frozen_at if self.frozen_at is not None else self.now()) + self.skew_s

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def take_fault(self, path: str) -> Fault | None:
        return take(self.faults, lambda fault: fault.where in path)

    def answer(self, request: Request) -> tuple[int, Any]:
        path, query = request.path, request.query
        if path.startswith("/v3/carbon-intensity/") or path == "/v3/zones":
            return self._electricitymaps(path.rsplit("/", 1)[1], query, request.headers)
        if path.startswith("/api/v1/"):
            return self._prometheus(path.rsplit("/", 1)[1], query, request.headers)
        return self._watttime(path, query, request.headers)

    def _slots(self, start: float, end: float, step: float) -> list[float]:
        first = -(-start // step) * step
        times = [first + n * step for n in range(int(max(0.0, end - first) // step) + 1)]
        return [t for t in times if t <= self.time and t not in self.gaps]

    def _watttime(self, path, query, headers) -> tuple[int, Any]:
        if path == "/login":
            expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if headers.get("Authorization") != f"Basic {expected}":
                return 403, {"error": "bad login"}
            self.logins += 1
            self.token = f"token-{self.logins}"
            return 200, {"token": self.token}
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"error": "token expired"}
        if path == "/v3/my-access":
            regions = [{"region": region, "region_full_name": region} for region in self.allowed]
            return 200, {"signal_types": [{"signal_type": "co2_moer", "regions": regions}]}
        if path == "/v3/region-from-loc":
            return 200, {"region": "CAISO_NORTH", "region_full_name": "California ISO Northern"}
        if query["region"] not in self.allowed:
            return 403, {"error": "Unauthorized region", "message": "no subscription"}
        if path == "/v3/forecast":
            if not self.forecasts:
                return 403, {"message": "no forecasts in this plan"}
            first = self.time // SLOT_S * SLOT_S
            steps = int(float(query["horizon_hours"]) * 12)
            times = [first + n * SLOT_S for n in range(steps or 1)]
            return 200, self._moer(
                [t for t in times if t not in self.gaps],
                iso(self.time),
                self.foretold if steps else None,
            )
        start, end = unix(query["start"]), unix(query["end"])
        if end - start > 32 * 86_400:
            return 400, {"message": "the window is longer than 32 days"}
        return 200, self._moer(self._slots(start, end, SLOT_S), None)

    def _moer(self, times, generated_at, foretold=None):
        rows = []
        for t in times:
            value = (foretold or self.value)(t)
            lb = value * LB_PER_MWH_OF_G_PER_KWH if isinstance(value, int | float) else value
            rows.append({"point_time": iso(t), "value": lb})
        meta = {"region": "CAISO_NORTH", "signal_type": "co2_moer", "units": "lbs_co2_per_mwh"}
        if generated_at is not None:
            meta["generated_at"] = generated_at
        return {"data": rows, "meta": {**meta, "data_point_period_seconds": 300, "warnings": []}}

    def _electricitymaps(self, what, query, headers) -> tuple[int, Any]:
        if headers.get("Auth-Token") != TOKEN:
            return 401, {"message": "Invalid auth-token"}
        if what == "zones":
            return 200, {zone: {"zoneName": zone} for zone in ("FR", "DE")}
        zone = query["zone"]
        if zone not in ("DE", "FR"):
            return 404, {"message": f"Zone '{zone}' does not exist"}
        hour = self.time // HOUR_S * HOUR_S
        if what == "latest":
            row = self._hour(hour)
            return 200, {"zone": zone, **row, "updatedAt": iso(self.time)}
        if what == "history":
            hours = self._slots(hour - 23 * HOUR_S, hour, HOUR_S)
            return 200, {"zone": zone, "history": [self._hour(t) for t in hours]}
        if what == "forecast":
            hours = [hour + n * HOUR_S for n in range(24)]
            rows = [self._hour(t, self.foretold) for t in hours]
            return 200, {"zone": zone, "forecast": rows, "updatedAt": iso(self.time)}
        if not self.past:
            return 403, {"message": "not in your plan"}
        start, end = unix(query["start"]), unix(query["end"])
        if end - start > 10 * 86_400:
            return 400, {"message": "at most 10 days"}
        return 200, {"zone": zone, "data": [self._hour(t) for t in self._slots(start, end, HOUR_S)]}

    def _hour(self, t, foretold=None):
        value = (foretold or self.value)(t)
        return {"datetime": iso(t).replace("+00:00", "Z"), "carbonIntensity": value}

    def _prometheus(self, what, query, headers) -> tuple[int, Any]:
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if headers.get("Authorization") not in (f"Bearer {TOKEN}", f"Basic {basic}"):
            return 401, {"error": "unauthorized"}
        asked = query["query"]
        if asked.startswith("bad("):
            return 400, {"status": "error", "errorType": "bad_data", "error": "parse error"}
        sample = self.time // 15.0 * 15.0  # scraped every 15 s
        names = {"none": 0, "two": 2}.get(asked.removeprefix("timestamp(").rstrip(")"), 1)
        if what == "query":
            said = sample if asked.startswith("timestamp(") else self.value(sample)
            rows = [
                {"metric": {"n": str(n)}, "value": [self.time, str(said)]} for n in range(names)
            ]
            return 200, _success("vector", rows)
        start, end, step = (float(query[key]) for key in ("start", "end", "step"))
        times = [t for n in range(int((end - start) // step) + 1) if (t := start + n * step) <= end]
        values = [[t, str(self.value(t))] for t in times if t <= self.time]
        return 200, _success("matrix", [{"metric": {}, "values": values}] if values else [])


def _success(kind: str, rows: list[Any]) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": rows}}


@contextmanager
def serving(**options: Any) -> Iterator[SignalServer]:
    signals = SignalServer(**options)

    with listening(_Handler, signals.go_on, signals=signals) as port:
        signals.url = f"http://127.0.0.1:{port}"
        yield signals


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    signals: SignalServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        headers = {key.title(): value for key, value in self.headers.items()}
        request = Request(parts.path, query, headers)
        self.signals.requests.append(request)
        fault = self.signals.take_fault(self.path)
        kind = fault.kind if fault else ""
        if kind.isdigit():
            self._send(int(kind), b'{"message": "scripted"}', fault.headers if fault else {})
            return
        status, answer = self.signals.answer(request)
        body = json.dumps(answer).encode()  # NaN and Infinity as Python writes them
        if kind == "not-json":
            body = b"<html>maintenance</html>"
        elif kind == "nonsense":
            body = b'{"data": [{"when": "now"}], "meta": {"units": "lbs_co2_per_mwh"}}'
        elif kind == "slow":
            self.signals.go_on.wait(30)
        try:
            self._send(status, body, {}, cut=kind == "truncated")
        except ConnectionError:
            self.close_connection = True  # it did not wait: that was the fault

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)
