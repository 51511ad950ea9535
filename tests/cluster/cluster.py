"""A cluster for a test: an API server on loopback, its controllers, and ways in for clients."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from tests.cluster import certificates, collector
from tests.cluster.access import ADMINS, Tokens, User, service_account
from tests.cluster.api import Api
from tests.cluster.faults import Faults
from tests.cluster.objects import Json
from tests.cluster.resources import Resources
from tests.cluster.server import Server

T = TypeVar("T")


class Part(Protocol):
    """Something in the cluster that compares what is wanted with what is there."""

    def step(self, api: Api) -> None:
        """Do what can be done now."""
        ...


class Collecting:
    """The garbage collector as a part of the cluster."""

    def step(self, api: Api) -> None:
        collector.collect(api)


@dataclass
class Cluster:
    """Started by `start`, gone without a trace after `stop`; its objects live in its thread."""

    folder: Path
    parts: list[Part] = field(default_factory=lambda: [Collecting()])
    tokens: Tokens = field(default_factory=Tokens)
    faults: Faults = field(default_factory=Faults)
    # Where pods reach the API server, if they have a network of their own
    addresses: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api = Api()
        self._listening = ["127.0.0.1", *self.addresses]
        self._tls = certificates.make(self.folder, self._listening)
        self.server = self._new_server()
        self.admin_token = self.tokens.issue(User("admin", (ADMINS, "system:authenticated")))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster")
        self._background: asyncio.Task[None] | None = None

    def _new_server(self, port: int = 0) -> Server:
        return Server(
            self.api, self.tokens, self.faults, self._tls, self._listening, port, self.failures
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def start(self) -> None:
        self._thread.start()
        self.run(self.server.start())
        self.run(self._start_parts())

    async def _start_parts(self) -> None:
        self._background = asyncio.create_task(self._control())
        self._background.add_done_callback(self._note)

    def _note(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    async def _control(self) -> None:
        """Let all parts work until nothing is left to do, then wait for the next change."""
        store = self.api.store
        while True:
            revision = store.revision
            for part in self.parts:
                part.step(self.api)
            if store.revision == revision:
                await store.changed(revision, timeout_s=0.2)
            await asyncio.sleep(0)

    def stop(self) -> None:
        """End everything, and fail the test if a part of the cluster has failed."""
        try:
            self.run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            self._loop.close()
        if self.failures:
            raise self.failures[0]

    async def _stop(self) -> None:
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)
        await self.server.stop()
        # what still served connections that have been cut
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30) -> T:
        """Run something in the cluster's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def call(self, work: Callable[[Api], T]) -> T:
        """Look at the objects, or change them, without HTTP."""

        async def do() -> T:
            return work(self.api)

        return self.run(do())

    def wait_until(self, is_true: Callable[[Api], bool], timeout_s: float = 20) -> bool:
        """Wait until something holds for the objects; whether it did in time."""

        def is_over() -> bool:
            return bool(self.failures) or is_true(self.api)

        is_met = self.run(self.api.store.until(is_over, timeout_s), timeout_s + 5)
        if self.failures:
            raise self.failures[0]
        return is_met

    def restart_server(self, with_store: bool = True) -> None:
        """Stop the API server and start another on its port, with what was stored or without."""
        self.run(self._restart(with_store))

    async def _restart(self, with_store: bool) -> None:
        port = self.server.port
        await self.server.stop()
        if not with_store:
            # No objects; revisions go on, so whoever comes back with an old one gets 410.
            self.api.store.lose()
            fresh = (self.api.service_addresses, self.api.node_ports)
            self.api = Api(self.api.store, Resources(), *fresh)
        logs = self.server.endpoints.logs
        self.server = self._new_server(port)
        self.server.endpoints.logs = logs
        await self.server.start()

    def cut_watches(self) -> None:
        """Drop every open connection."""

        async def cut() -> None:
            self.server.cut()

        self.run(cut())

    def forget_history(self) -> None:
        """Compact the store and drop all connections: an old version is answered with 410."""
        self.call(lambda api: api.store.compact())
        self.cut_watches()

    def service_account_token(self, namespace: str, name: str) -> str:
        return self.tokens.issue(service_account(namespace, name))

    def kubeconfig(self, token: str | None = None, name: str = "admin") -> Path:
        """A file for kubectl, kopf, lightkube and others; with the token of an admin by default."""
        config: Json = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "ground",
                    "cluster": {"server": self.url, "certificate-authority": str(self.ca)},
                }
            ],
            "users": [{"name": name, "user": {"token": token or self.admin_token}}],
            "contexts": [
                {
                    "name": "ground",
                    "context": {"cluster": "ground", "user": name, "namespace": "default"},
                }
            ],
            "current-context": "ground",
        }
        path = self.folder / f"kubeconfig-{name}"
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path
