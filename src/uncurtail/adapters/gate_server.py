"""The one door of a run for machines elsewhere: a few paths over TLS, each for one site alone.

Behind it lie SuperLink, the state plane, the store, the data and the sites' records, which all
stay on loopback. SuperLink's own port would let anyone who reaches it submit code (Flower 1.41):
here only `/v1/fleet/` goes through, where a SuperNode signs each request with its session's key.
Everything else needs the token of the site that it speaks of, and touches nothing of another.
"""

import asyncio
import hmac
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from uncurtail.adapters import clock
from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.certificates import site_token
from uncurtail.adapters.gate_bodies import (
    CONSUMED,
    INDEX,
    STATE,
    WATTS,
    RefusedError,
    Spool,
    as_sent,
    plain,
    shaped,
    small,
)
from uncurtail.adapters.gate_files import (
    INDEX_FILE,
    STATE_FILE,
    append_once,
    keep_only,
    replace_index,
    whole_snapshot,
)
from uncurtail.core.orders import Wanted

log = logging.getLogger("uncurtail.gate")

# A kept-alive connection to SuperLink waits for nothing longer than Flower's own client does.
FLEET_TIMEOUT_S = 60.0
# An answer to an order is a few kilobytes: what is large goes past Flower.
FLEET_BYTES = 8 << 20
KEY_BYTES = 1 << 12
INDEX_BYTES = 1 << 12
# Of one site. Each may keep one of the 40 threads that all sites share; a trainer needs three.
AT_ONCE = 8
# What Flower 1.41 sends and signs, and what SuperLink answers; nothing else is handed on.
FLEET_HEADERS = re.compile(r"content-type|accept|flwr-[a-z-]{1,40}")
PUBLIC_KEY = "flwr-public-key"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_UPDATE = re.compile(r"[0-9]{1,9}|reply\.json")
_ENDS_HERE = frozenset({400, 401, 408, 411, 413, 507})  # what is left of a body is not read

Handler = Callable[[Request], Awaitable[Response]]


class _Number(Convertor[int]):
    """A session or a round: nobody counts further."""

    regex = "[0-9]{1,9}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


class Store(Protocol):
    """The payload plane, as far as sites use it."""

    def stream(self, key: str) -> Iterator[bytes]:
        """An object in pieces; UnusableError at once when it is not there."""
        ...

    def put(self, key: str, data: Path) -> None:
        """Write a file's content, whole or not at all; it is never in memory as a whole."""
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
    data: Path
    records: Callable[[str], Path]  # a site's own folder
    store: Store
    state: State
    spool: Spool
    most_update_bytes: int
    most_state_bytes: int  # of an optimizer
    register: Callable[[str, int, str], str | None]  # site, session, public key; why not
    registered: Callable[[str], bool]  # whether a SuperNode's key, as its header has it, was


def app(behind: Behind) -> Starlette:
    """The door as an ASGI application."""
    gate = _Gate(behind)
    site = "/site/{site}"
    session = f"{site}/{{session:number}}"
    routes = [
        (f"{site}/welcome", "GET", gate.welcome),
        (f"{site}/wanted", "GET", gate.wanted),
        (f"{session}/key", "POST", gate.key),
        (f"{session}/state", "POST", gate.state),
        (f"{session}/watts", "POST", gate.watts),
        (f"{session}/consumed", "POST", gate.consumed),
        (f"{session}/updates/{{round:number}}/{{name}}", "PUT", gate.update),
        (f"{site}/objects/{{name}}", "GET", gate.object),
        (f"{site}/data/{{name}}", "GET", gate.data),
        (f"{site}/snapshot/{{name}}", "GET", gate.snapshot),
        (f"{site}/snapshot/{{name}}", "PUT", gate.keep_snapshot),
    ]
    opened = [Route(path, gate.own(call), methods=[method]) for path, method, call in routes]
    fleet = Route("/v1/fleet/{call}", gate.fleet, methods=["POST"])
    return Starlette(routes=[fleet, *opened])


class _Gate:
    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._turns = {site: asyncio.Semaphore(AT_ONCE) for site in behind.sites}
        self._superlink = httpx.AsyncClient(
            base_url=behind.superlink,
            verify=ssl.create_default_context(cafile=str(behind.authority)),
            timeout=FLEET_TIMEOUT_S,
            trust_env=False,  # no proxy stands between us and loopback
        )

    def own(self, call: Handler) -> Handler:
        """The call, for those alone who show the token of the path's site."""

        async def checked(request: Request) -> Response:
            site = request.path_params["site"]
            shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if site not in self._behind.sites or not hmac.compare_digest(
                shown, site_token(self._behind.secret, site).encode()
            ):
                return _no(401, "the token is not that of this site")
            if not _PLAIN.fullmatch(request.path_params.get("name", "plain")):
                return _no(404, "no such name")
            async with self._turns[site]:
                return await _answered(call, request)

        return checked

    async def fleet(self, request: Request) -> Response:
        """A SuperNode's call, handed to SuperLink as it came."""
        if not _PLAIN.fullmatch(request.path_params["call"]):  # as ".." would be
            return _no(404, "no such call")
        # SuperLink checks the signature, but reads the whole body first.
        if not self._behind.registered(request.headers.get(PUBLIC_KEY, "")):
            return _no(401, "no session has this key")
        return await _answered(self._handed_on, request)

    async def _handed_on(self, request: Request) -> Response:
        try:
            answer = await self._superlink.post(
                f"/v1/fleet/{request.path_params['call']}",
                content=await small(request, FLEET_BYTES),
                headers=_of_flower(request.headers.items()),
            )
        except httpx.HTTPError as error:
            return _no(503, f"SuperLink: {type(error).__name__}")
        return Response(answer.content, answer.status_code, _of_flower(answer.headers.items()))

    async def welcome(self, request: Request) -> Response:
        """What a site has to know of the run."""
        snapshot = await run_in_threadpool(whole_snapshot, self._snapshots(request))
        return JSONResponse(
            {
                "run": self._behind.run,
                "config": self._behind.config,
                "snapshot": snapshot,
                "now_wall_s": clock.wall(),
            }
        )

    async def wanted(self, request: Request) -> Response:
        """Which session should be up."""
        found = await run_in_threadpool(self._behind.state.wanted, request.path_params["site"])
        return JSONResponse(None if found is None else asdict(found))

    async def key(self, request: Request) -> Response:
        """Make a session's public key known to Flower: its own machine keeps the private one."""
        site, session = request.path_params["site"], request.path_params["session"]
        text = (await small(request, KEY_BYTES)).decode()
        wanted = await run_in_threadpool(self._behind.state.wanted, site)
        if wanted is None or wanted.session != session or not wanted.up:
            return _no(409, f"session {session} of {site} is not wanted now")
        why = await run_in_threadpool(self._behind.register, site, session, text)
        return Response(status_code=204) if why is None else _no(503, why)

    async def state(self, request: Request) -> Response:
        """A heartbeat and steps in, what is wanted out."""
        site, session = request.path_params["site"], request.path_params["session"]
        said = shaped(await small(request), STATE)
        if said.heart.session != session or any(
            (step.site, step.session) != (site, session) for step in said.steps
        ):
            return _no(400, "a session speaks for itself alone")
        heart, steps = await run_in_threadpool(plain, said)
        found = await run_in_threadpool(self._behind.state.exchange, site, heart, steps)
        return (
            _no(503, "the state server is out of reach") if found is None else JSONResponse(found)
        )

    async def watts(self, request: Request) -> Response:
        """What a session measured of its power, stamped here: clocks elsewhere may be off."""
        site, session = request.path_params["site"], request.path_params["session"]
        said = shaped(await small(request), WATTS)
        heard = await run_in_threadpool(
            self._behind.state.measured, site, session, said.watts, said.source
        )
        return Response(status_code=204) if heard else _no(503, "the state server is out of reach")

    async def consumed(self, request: Request) -> Response:
        """What a session consumed, on its site's record before anyone hears of it; once."""
        site, session = request.path_params["site"], request.path_params["session"]
        body = await small(request)
        if shaped(body, CONSUMED).session != session:
            return _no(400, "a session speaks for itself alone")
        path = self._behind.records(site) / "consumed.jsonl"
        await run_in_threadpool(append_once, path, as_sent(body))
        return Response(status_code=204)

    async def update(self, request: Request) -> Response:
        """A session's update, or its answer, for a round."""
        place = request.path_params
        if not _UPDATE.fullmatch(place["name"]):
            return _no(404, "no such update")
        folder = f"updates/{self._behind.run}/{place['round']:06d}"
        key = f"{folder}/{place['site']}.{place['session']}/{place['name']}"
        async with self._behind.spool.gather(request, self._behind.most_update_bytes) as path:
            await run_in_threadpool(self._behind.store.put, key, path)
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
        """Keep a file of the site's snapshot: its state, and then its index, which makes it one."""
        folder, name = self._snapshots(request), request.path_params["name"]
        if name == INDEX_FILE:
            body = await small(request, INDEX_BYTES)
            named = shaped(body, INDEX).file
            if not (folder / named).is_file():
                return _no(409, f"{named} has to come first")
            await run_in_threadpool(replace_index, folder, body)
            await run_in_threadpool(keep_only, folder, {named})
            return Response(status_code=204)
        if not STATE_FILE.fullmatch(name):
            return _no(404, "no such file of a snapshot")
        async with self._behind.spool.gather(request, self._behind.most_state_bytes) as path:
            folder.mkdir(parents=True, exist_ok=True)
            await run_in_threadpool(keep_only, folder, {name, *whole_snapshot(folder)})
            path.replace(folder / name)
        return Response(status_code=204)

    def _snapshots(self, request: Request) -> Path:
        return self._behind.records(request.path_params["site"]) / "snapshot"


async def _answered(call: Handler, request: Request) -> Response:
    """What a call answers, or in words why it does not; where things lie here is told to nobody."""
    try:
        return await call(request)
    except RefusedError as error:
        return _no(error.status, str(error))
    except UnusableError as error:
        return _no(404, str(error))
    except BlobError as error:
        log.warning("%s", error)
        return _no(503, "the store refuses: the log of the gate says why")
    except OSError as error:
        log.warning("%s", error)
        return _no(503, f"the run's disk: {error.strerror}")
    except ValueError as error:
        return _no(400, str(error)[:200])


def _of_flower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in headers if FLEET_HEADERS.fullmatch(name.lower())}


def _file(path: Path) -> Response:
    return FileResponse(path) if path.is_file() else _no(404, f"{path.name} is not there")


def _no(status: int, why: str) -> Response:
    headers = {"connection": "close"} if status in _ENDS_HERE else None
    return JSONResponse({"error": why}, status, headers)
