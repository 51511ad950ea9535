"""The one door of a run for machines elsewhere: a few paths over TLS, each for one site alone.

Behind it lie SuperLink, the state plane, the store, the data and the sites' records, which all
stay on loopback. SuperLink's own port would let anyone who reaches it submit code (Flower 1.41):
here only `/v1/fleet/` goes through, where a SuperNode signs each request with its session's key.
Everything else needs the token of the site that it speaks of, and touches nothing of another.
"""

import hmac
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.certificates import site_token
from uncurtail.core.orders import Wanted

# A kept-alive connection to SuperLink waits for nothing longer than Flower's own client does.
FLEET_TIMEOUT_S = 60.0
MOST_BYTES = 64 << 30
_OWN_HEADERS = {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "te"}
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")

Handler = Callable[[Request], Awaitable[Response]]


class Store(Protocol):
    """The payload plane, as far as sites use it."""

    def stream(self, key: str) -> Iterator[bytes]:
        """An object in pieces; UnusableError at once when it is not there."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write whole or not at all."""
        ...


class State(Protocol):
    """The state plane, as far as sites use it."""

    def exchange(self, site: str, heart: Any, steps: Any) -> Any:
        """What `SiteState.exchange` gives, as JSON can hold it; None while out of reach."""
        ...

    def wanted(self, site: str) -> Wanted | None:
        """Which session should be up; None while nobody says."""
        ...

    def measured(self, site: str, session: int, watts: float, source: str) -> bool:
        """Take what a session measured of its power; whether it got there."""
        ...


@dataclass(frozen=True, slots=True)
class Behind:
    """What the door opens to."""

    run: str
    config: str
    sites: frozenset[str]
    secret: bytes
    superlink: str  # https://HOST:PORT
    authority: Path  # what its certificate is checked with
    tls: Path  # server.crt and server.key, the gate's own
    data: Path
    records: Callable[[str], Path]  # a site's own folder
    store: Store
    state: State
    register: Callable[[str, int, str], str | None]  # site, session, public key; why not


def app(behind: Behind) -> Starlette:
    """The door as an ASGI application."""
    gate = _Gate(behind)
    site = "/site/{site}"
    session = f"{site}/{{session:int}}"
    routes = [
        (f"{site}/welcome", "GET", gate.welcome),
        (f"{site}/wanted", "GET", gate.wanted),
        (f"{session}/key", "POST", gate.key),
        (f"{session}/state", "POST", gate.state),
        (f"{session}/watts", "POST", gate.watts),
        (f"{session}/consumed", "POST", gate.consumed),
        (f"{session}/updates/{{round:int}}/{{name}}", "PUT", gate.update),
        (f"{site}/objects/{{name}}", "GET", gate.object),
        (f"{site}/data/{{name}}", "GET", gate.data),
        (f"{site}/snapshot/{{name}}", "GET", gate.snapshot),
        (f"{site}/snapshot/{{name}}", "PUT", gate.keep_snapshot),
    ]
    opened = [Route(path, gate.own(call), methods=[method]) for path, method, call in routes]
    fleet = Route("/v1/fleet/{call}", gate.fleet, methods=["POST", "GET"])
    return Starlette(routes=[fleet, *opened])


def serve(behind: Behind, host: str, port: int) -> None:
    """Serve the door until SIGTERM."""
    import uvicorn

    uvicorn.run(
        app(behind),
        host=host,
        port=port,
        ssl_certfile=str(behind.tls / "server.crt"),
        ssl_keyfile=str(behind.tls / "server.key"),
        log_level="warning",
        access_log=False,
    )


class _Gate:
    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._superlink = httpx.AsyncClient(
            base_url=behind.superlink,
            verify=_trusting(behind.authority),
            timeout=FLEET_TIMEOUT_S,
        )

    def own(self, call: Handler) -> Handler:
        """The call, for those alone who show the token of the path's site."""

        async def checked(request: Request) -> Response:
            site = request.path_params["site"]
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            expected = site_token(self._behind.secret, site)
            if site not in self._behind.sites or not hmac.compare_digest(shown, expected):
                return _no(401, "the token is not that of this site")
            if not all(_PLAIN.fullmatch(v) for k, v in request.path_params.items() if k == "name"):
                return _no(404, "no such name")
            try:
                return await call(request)
            except UnusableError as error:
                return _no(404, str(error))
            except (BlobError, OSError) as error:
                return _no(503, str(error))
            except ValueError as error:
                return _no(400, str(error))

        return checked

    async def fleet(self, request: Request) -> Response:
        """A SuperNode's call, handed to SuperLink as it came."""
        if not _PLAIN.fullmatch(request.path_params["call"]):  # as ".." would be
            return _no(404, "no such call")
        kept = [(k, v) for k, v in request.headers.raw if k.decode().lower() not in _OWN_HEADERS]
        try:
            answer = await self._superlink.request(
                request.method,
                f"/v1/fleet/{request.path_params['call']}",
                content=await request.body(),
                headers=kept,
                params=request.query_params,
            )
        except httpx.HTTPError as error:
            return _no(503, f"SuperLink: {type(error).__name__}")
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _OWN_HEADERS}
        headers.pop("content-encoding", None)  # httpx has decoded it
        return Response(answer.content, answer.status_code, headers)

    async def welcome(self, request: Request) -> Response:
        """What a site has to know of the run."""
        kept = self._snapshots(request)
        return JSONResponse(
            {
                "run": self._behind.run,
                "config": self._behind.config,
                "snapshot": sorted(p.name for p in kept.glob("*") if _kept(p.name)),
            }
        )

    async def wanted(self, request: Request) -> Response:
        """Which session should be up."""
        found = await run_in_threadpool(self._behind.state.wanted, request.path_params["site"])
        return JSONResponse(None if found is None else asdict(found))

    async def key(self, request: Request) -> Response:
        """Make a session's public key known to Flower: its own machine keeps the private one."""
        site, session = request.path_params["site"], request.path_params["session"]
        wanted = await run_in_threadpool(self._behind.state.wanted, site)
        if wanted is None or wanted.session != session or not wanted.up:
            return _no(409, f"session {session} of {site} is not wanted now")
        text = (await request.body()).decode()
        why = await run_in_threadpool(self._behind.register, site, session, text)
        return Response(status_code=204) if why is None else _no(503, why)

    async def state(self, request: Request) -> Response:
        """A heartbeat and steps in, what is wanted out."""
        site, session = request.path_params["site"], request.path_params["session"]
        body = await request.json()
        heart, steps = body["heart"], body["steps"]
        if heart["session"] != session or any(
            (step["site"], step["session"]) != (site, session) for step in steps
        ):
            return _no(400, "a session speaks for itself alone")
        found = await run_in_threadpool(self._behind.state.exchange, site, heart, steps)
        return (
            _no(503, "the state server is out of reach") if found is None else JSONResponse(found)
        )

    async def watts(self, request: Request) -> Response:
        """What a session measured of its power, stamped here: clocks elsewhere may be off."""
        site, session = request.path_params["site"], request.path_params["session"]
        body = await request.json()
        said = (float(body["watts"]), str(body["source"]))
        heard = await run_in_threadpool(self._behind.state.measured, site, session, *said)
        return Response(status_code=204) if heard else _no(503, "the state server is out of reach")

    async def consumed(self, request: Request) -> Response:
        """What a session consumed, on its site's record before anyone hears of it; once."""
        row = await request.json()
        if row["session"] != request.path_params["session"]:
            return _no(400, "a session speaks for itself alone")
        path = self._behind.records(request.path_params["site"]) / "consumed.jsonl"
        await run_in_threadpool(_append_once, path, row)
        return Response(status_code=204)

    async def update(self, request: Request) -> Response:
        """A session's update, or its answer, for a round."""
        place = request.path_params
        folder = f"updates/{self._behind.run}/{place['round']:06d}"
        key = f"{folder}/{place['site']}.{place['session']}/{place['name']}"
        await run_in_threadpool(self._behind.store.put, key, await _body(request))
        return Response(status_code=204)

    async def object(self, request: Request) -> Response:
        """A model, by its hash."""
        key = f"objects/{request.path_params['name']}"
        pieces = await run_in_threadpool(self._behind.store.stream, key)
        return StreamingResponse(iterate_in_threadpool(pieces))

    async def data(self, request: Request) -> Response:
        """A file of the prepared data."""
        return _file(self._behind.data / request.path_params["name"])

    async def snapshot(self, request: Request) -> Response:
        """A file of the site's last snapshot."""
        return _file(self._snapshots(request) / request.path_params["name"])

    async def keep_snapshot(self, request: Request) -> Response:
        """Keep a file of the site's snapshot."""
        folder = self._snapshots(request)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / request.path_params["name"]
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            async for piece in _pieces(request):
                await run_in_threadpool(file.write, piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return Response(status_code=204)

    def _snapshots(self, request: Request) -> Path:
        return self._behind.records(request.path_params["site"]) / "snapshot"


def _kept(name: str) -> bool:
    return bool(_PLAIN.fullmatch(name)) and name.endswith((".json", ".safetensors"))


def _append_once(path: Path, row: dict[str, Any]) -> None:
    """Append durably, unless this attempt is on record: its answer was lost on the way."""
    same = ("session", "round", "attempt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        file.truncate(whole)  # a torn last line: a gate died there, and nobody heard of it
        known = (json.loads(line) for line in reversed(data[:whole].splitlines()))
        if any(all(row[key] == one[key] for key in same) for one in known):
            return
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


async def _body(request: Request) -> bytes:
    return b"".join([piece async for piece in _pieces(request)])


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body, whole: one that was cut short is no body.

    Raises:
        ValueError: It is not as long as was said, or too long.
    """
    said, got = int(request.headers.get("content-length", -1)), 0
    async for piece in request.stream():
        got += len(piece)
        if got > MOST_BYTES:
            raise ValueError("too large")
        yield piece
    if got != said:
        raise ValueError(f"{got} bytes came, {said} were announced")


def _file(path: Path) -> Response:
    return FileResponse(path) if path.is_file() else _no(404, f"{path.name} is not there")


def _trusting(ca: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca))


def _no(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)
