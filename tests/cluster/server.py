"""The API server: real HTTP on loopback, with tokens, roles and planned faults."""

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from aiohttp import web

from tests.cluster import discovery
from tests.cluster.access import ANONYMOUS, Ask, Authorizer, Tokens, User
from tests.cluster.api import Api
from tests.cluster.endpoints import Endpoints, reply
from tests.cluster.faults import Faults, LoseAnswer, Outrun, Refuse, Slow
from tests.cluster.objects import Json, labels_of
from tests.cluster.refusals import ApiError, forbidden, no_such_path, unauthorized
from tests.cluster.targets import ask_of, object_of, target_of

_OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version")
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Listening(socket.socket):
    """A listening socket that knows whom it let in, also who still shakes hands for TLS."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__()
        self.setblocking(False)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind((address, port))
        self.taken: WeakSet[socket.socket] = WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        connection, peer = super().accept()
        self.taken.add(connection)
        return connection, peer

    def cut(self) -> bool:
        """End all connections without a word; whether some were there to end."""
        open_ones = [connection for connection in self.taken if connection.fileno() >= 0]
        for connection in open_ones:
            with suppress(OSError):  # the other end was faster
                connection.shutdown(socket.SHUT_RDWR)
        return bool(open_ones)


@dataclass
class Server:
    """One API server over a store that may outlive it."""

    api: Api
    tokens: Tokens
    faults: Faults
    tls: ssl.SSLContext
    addresses: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    port: int = 0
    failures: list[BaseException] = field(default_factory=list)
    is_up: bool = False
    requests: list[tuple[str, Ask]] = field(default_factory=list)
    _runner: web.AppRunner | None = None
    _listening: list[Listening] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authorizer = Authorizer(self.api.store)
        self.endpoints = Endpoints(self.api, self.authorizer, lambda: self.is_up)

    async def start(self) -> None:
        """Listen; after a stop on the same port as before."""
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        for address in self.addresses:
            listening = Listening(address, self.port)
            self._listening.append(listening)
            await web.SockSite(self._runner, listening, ssl_context=self.tls).start()
            # the first finds a port, the others have the same
            self.port = listening.getsockname()[1]
        self.is_up = True

    async def stop(self) -> None:
        """Listen no more, and end all connections: as a process that dies."""
        self.is_up = False
        self.api.store.wake()
        for listening in self._listening:
            # no other must be let in: asyncio forgets to close one that comes as its server ends
            asyncio.get_running_loop().remove_reader(listening)
        async with asyncio.timeout(10):
            while self.cut():
                await asyncio.sleep(0.01)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._listening.clear()

    def cut(self) -> bool:
        """Drop every connection that is open, watches included, without a word; whether any was."""
        were_open = [listening.cut() for listening in self._listening]
        return any(were_open)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except ApiError as error:
            headers = (
                {"Retry-After": str(error.details["retryAfterSeconds"])}
                if ("retryAfterSeconds" in error.details)
                else {}
            )
            return reply(error.status(), error.code, headers)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # a mistake of ours: the client sees 500, and the test fails when the cluster stops
            self.failures.append(error)
            raise

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        user, ask = self._user(request), ask_of(request)
        self.requests.append((user.name, ask))
        fault = self.faults.strike(ask)
        match fault:
            case Refuse(code, reason, retry_after_s):
                details = {} if retry_after_s is None else {"retryAfterSeconds": retry_after_s}
                raise ApiError(code, reason, f"planned fault: {ask.verb} {ask.resource}", details)
            case Slow(delay_s):
                await asyncio.sleep(delay_s)
            case Outrun():
                self._outrun(ask)
            case LoseAnswer() | None:
                pass
        if request.path not in _OPEN_PATHS:
            self._check(user, ask)
        answer = await self._dispatch(request, user)
        if isinstance(fault, LoseAnswer) and request.transport is not None:
            request.transport.abort()
        return answer

    def _outrun(self, ask: Ask) -> None:
        """Write to the object of a request before it is carried out."""
        for key, thing in list(self.api.store.select(ask.group, ask.resource, ask.namespace)):
            if key.name == ask.name:
                labels = {**labels_of(thing), "ground.example.org/rival": str(time.monotonic_ns())}
                metadata = {**thing["metadata"], "labels": labels}
                self.api.store.put(key, {**thing, "metadata": metadata})

    def _user(self, request: web.Request) -> User:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if not kind:
            return ANONYMOUS
        user = self.tokens.known.get(token.strip())
        if kind.lower() != "bearer" or user is None:
            raise unauthorized()
        return user

    def _check(self, user: User, ask: Ask) -> None:
        if self.authorizer.allows(user, ask):
            return
        # Whoever has a token may look at what there is.
        if ask.path and ask.verb == "get" and user is not ANONYMOUS:
            return
        if ask.path:
            raise forbidden(f'forbidden: User "{user.name}" cannot {ask.verb} path "{ask.path}"')
        own = ask.resource == "selfsubjectaccessreviews"
        if own and user is not ANONYMOUS:
            return
        what = f"{ask.resource}/{ask.subresource}" if ask.subresource else ask.resource
        where = f'in the namespace "{ask.namespace}"' if ask.namespace else "at the cluster scope"
        qualified = f"{ask.resource}.{ask.group}" if ask.group else ask.resource
        named = f' "{ask.name}"' if ask.name else ""
        raise forbidden(
            f'{qualified}{named} is forbidden: User "{user.name}" cannot {ask.verb} '
            f'resource "{what}" in API group "{ask.group}" {where}'
        )

    async def _dispatch(self, request: web.Request, user: User) -> web.StreamResponse:
        target = target_of(request.path)
        if target is None:
            return self._about(request)
        if target.plural == "selfsubjectaccessreviews":
            return reply(self._review(await object_of(request), user), 201)
        return await self.endpoints.answer(request, target, user)

    def _review(self, review: Json, user: User) -> Json:
        """Answer `kubectl auth can-i`."""
        asked = review["spec"].get("resourceAttributes") or {}
        ask = Ask(
            asked.get("verb", ""),
            asked.get("group", ""),
            asked.get("resource", ""),
            asked.get("subresource", ""),
            asked.get("namespace", ""),
            asked.get("name", ""),
        )
        return {**review, "status": {"allowed": self.authorizer.allows(user, ask)}}

    def _about(self, request: web.Request) -> web.Response:
        """The paths that are no objects: health, version, discovery, OpenAPI."""
        parts = [part for part in request.path.split("/") if part]
        accept = request.headers.get("Accept", "")
        if parts in (["api"], ["apis"]) and "apidiscovery.k8s.io;v=v2;" in accept:
            answer = discovery.aggregated(self.api.resources, is_core=parts == ["api"])
            return reply(answer, headers={"Content-Type": _AGGREGATED})
        if parts and parts[0] in ("healthz", "livez", "readyz"):
            return web.Response(text="ok")
        found = self._described(parts)
        if found is None:
            raise no_such_path()
        return reply(found)

    def _described(self, parts: list[str]) -> Json | None:
        resources = self.api.resources
        match parts:
            case ["version"]:
                return discovery.VERSION
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return discovery.legacy_groups(resources)
            case ["apis", group]:
                return discovery.legacy_group(resources, group)
            case ["openapi", "v3"]:
                return discovery.openapi_index(resources)
            case [*_, "api", version]:
                return self._version(parts, "", version)
            case [*_, "apis", group, version]:
                return self._version(parts, group, version)
            case _:
                return None

    def _version(self, parts: list[str], group: str, version: str) -> Json | None:
        if parts[0] == "openapi":
            return discovery.openapi(self.api.resources, group, version)
        return discovery.legacy_resources(self.api.resources, group, version)
