"""`uncurtail operator run`: the framework, the mirror, the worker and the lease, in one process.

kopf runs the process: it waits for the CRD, watches Federations, and answers /healthz. It does not
watch what they become: its events do not tell what went missing while a watch was broken, which is
harmless for a Federation (our finalizer holds it) and not for the rest; reflectors do that.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kopf
import prometheus_client

from uncurtail.adapters import clock
from uncurtail.adapters.kubernetes_api import Api, KubeError, Stream, settings
from uncurtail.operating import lease
from uncurtail.operating.kinds import CHILDREN, FEDERATION, POD
from uncurtail.operating.lease import Lease
from uncurtail.operating.measures import Measures
from uncurtail.operating.mirror import Mirror
from uncurtail.operating.reflector import Reflector
from uncurtail.operating.worker import Worker
from uncurtail.operator.names import MANAGER

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

log = logging.getLogger("uncurtail.operator")


@dataclass(frozen=True, slots=True)
class Options:
    """How to run."""

    namespaces: Sequence[str] = ()  # none: all of the cluster
    health_port: int = 8081
    metrics_port: int = 8080  # 0: none
    elect: bool = True


def run(options: Options) -> int:
    """Run until SIGTERM; 1 where another operator leads now."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("kopf", "httpx2", "aiohttp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return asyncio.run(_Operator(options).run())


class _Operator:
    """Everything of one process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        config = settings()
        self._mirror = Mirror()
        self._measures = Measures(self._mirror)
        self._api = Api(config, answered=self._measures.answered)
        self._stream = Stream(config, answered=self._measures.answered)
        me = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        place = (os.environ.get("POD_NAMESPACE") or self._api.namespace, MANAGER)
        self._lease = Lease(self._api, place, me, monotonic=clock.monotonic, stamp=_stamp)
        self._reflectors: list[Reflector] = []

    async def run(self) -> int:
        """Start everything; whatever ends first ends the rest."""
        self._worker = Worker(self._api, self._mirror, self._measures, self._leads)
        scopes: Sequence[str | None] = self._options.namespaces or (None,)
        self._reflectors = [
            Reflector(self._stream, kind, scope, self._mirror, self._worker.agenda.mark)
            for kind in (*CHILDREN, POD)
            for scope in scopes
        ]
        server = self._serve_metrics()
        tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        tasks.append(asyncio.create_task(self._worker.run(self._synced)))
        if self._options.elect:
            tasks.append(asyncio.create_task(self._keep_lease()))
        framework = asyncio.create_task(self._framework())
        try:
            done, _ = await asyncio.wait({framework, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (framework, *tasks):
                task.cancel()
            await asyncio.gather(framework, *tasks, return_exceptions=True)
            await asyncio.to_thread(self._leave)
            await self._stream.close()
            self._api.close()
            if server is not None:
                server.shutdown()
                server.server_close()
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception() or AssertionError
        return 0 if framework in done else 1

    def _leads(self) -> bool:
        held = not self._options.elect or self._lease.held
        self._measures.leads(held)
        return held

    def _synced(self) -> bool:
        return all(reflector.synced.is_set() for reflector in self._reflectors)

    async def _keep_lease(self) -> None:
        """Renew for ever; return when we led and do not any more."""
        led = False
        while not (led and not self._lease.held):
            try:
                await asyncio.to_thread(self._lease.turn)
            except KubeError as error:
                log.warning("the lease cannot be renewed: %s", error)
            if self._lease.held and not led:
                log.info("this operator leads")
            led = led or self._lease.held
            await asyncio.sleep(lease.EVERY_S)
        # What a worker began may still be written, so another process starts from nothing.
        log.error("this operator does not lead any more")

    def _leave(self) -> None:
        try:
            self._lease.give_up()
        except KubeError as error:
            log.info("the lease runs out by itself: %s", error)

    def _serve_metrics(self) -> Any:
        if not self._options.metrics_port:
            return None
        server, _ = prometheus_client.start_http_server(
            self._options.metrics_port, registry=self._measures.registry
        )
        return server

    async def _framework(self) -> None:
        registry = kopf.OperatorRegistry()
        group, version = FEDERATION.api_version.split("/")

        @kopf.on.login(registry=registry)
        def login(**_: Any) -> kopf.ConnectionInfo:
            return _connection()

        @kopf.on.event(group, version, FEDERATION.plural, registry=registry)
        async def seen(event: Any, **_: Any) -> None:
            self._worker.federation_seen(event["type"], dict(event["object"]))

        @kopf.on.probe(id="synced", registry=registry)
        def synced(**_: Any) -> bool:
            return self._synced()

        configured = kopf.OperatorSettings()
        configured.posting.enabled = False  # events are ours, and few
        configured.peering.standalone = True  # the Lease says who leads
        configured.watching.server_timeout = 290
        scope: dict[str, Any] = (
            {"namespaces": list(self._options.namespaces)}
            if self._options.namespaces
            else {"clusterwide": True}
        )
        await kopf.operator(
            registry=registry,
            settings=configured,
            standalone=True,
            liveness_endpoint=f"http://0.0.0.0:{self._options.health_port}/healthz",
            **scope,
        )


def _connection() -> kopf.ConnectionInfo:
    """The framework goes where the rest of us goes; asked again when a token is refused."""
    config = settings()
    cluster, user = config.cluster, config.user
    assert user is not None, "connecting would have failed before"
    token = user.token
    if user.token_file is not None:
        token = Path(user.token_file).read_text(encoding="ascii").strip()
    return kopf.ConnectionInfo(
        server=cluster.server,
        ca_path=_path(config, cluster.certificate_auth),
        ca_data=cluster.certificate_auth_data,
        insecure=cluster.insecure,
        token=token,
        username=user.username,
        password=user.password,
        certificate_path=_path(config, user.client_cert),
        certificate_data=user.client_cert_data,
        private_key_path=_path(config, user.client_key),
        private_key_data=user.client_key_data,
    )


def _path(config: "SingleConfig", name: str | None) -> str | None:
    """Names in a kubeconfig are relative to it."""
    return None if name is None else str(config.abs_file(name))


def _stamp() -> str:
    """As a Lease has it: microseconds, in UTC."""
    return datetime.fromtimestamp(clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
