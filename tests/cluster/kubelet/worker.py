"""One pod on its node: volumes, init containers, sidecars, containers, and its end."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uncurtail
from tests.cluster.api import Api
from tests.cluster.controllers import pods
from tests.cluster.kubelet.box import Box
from tests.cluster.kubelet.containers import Container
from tests.cluster.kubelet.environment import Image, Launch, NotYetError, launch
from tests.cluster.kubelet.network import Network
from tests.cluster.kubelet.proxy import hosts
from tests.cluster.kubelet.volumes import Mount, Volumes
from tests.cluster.objects import Json, timestamp, with_condition
from tests.cluster.refusals import ApiError

_RETRY_S = 0.2
# What every image has: this interpreter's environment, and the sources that it imports.
IMAGE = (Path(sys.prefix), Path(uncurtail.__file__).parents[1])


@dataclass
class Worker:
    """Runs a pod until it has ended or is to end; writes its status at each change."""

    api: Api
    pod: Json
    network: Network
    volumes: Volumes
    image: Image
    folder: Path
    cluster: dict[str, str]
    is_initialized: bool = False
    started_at: str = field(default_factory=timestamp)

    def __post_init__(self) -> None:
        self.address = self.network.attach(self.pod["metadata"]["uid"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refresh_hosts()
        spec = self.pod["spec"]
        self.first = [self._container(c) for c in spec.get("initContainers") or []]
        self.main = [self._container(c) for c in spec["containers"]]
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._running = asyncio.create_task(self._run())
        self._ending: asyncio.Task[None] | None = None

    def _container(self, spec: Json) -> Container:
        log = self.folder / f"{spec['name']}.log"
        return Container(spec, self.address, log, self.write_status)

    def refresh_hosts(self) -> None:
        """Tell the pod where the Services are now, in the file that its containers have mounted."""
        path = self.folder / "hosts"
        known = {**self.pod, "status": {"podIP": self.address}}
        text = hosts(self.api, known)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def _box(self, container: Container) -> Box:
        name = self.pod["spec"].get("hostname") or self.pod["metadata"]["name"]
        mounts = [Mount(self.folder / "hosts", "/etc/hosts", False)]
        mounts += self.volumes.mounts(container.spec, self._launch(container).environment)
        # The image's own programs stay in sight where a volume lies over the checkout, as on /tmp.
        hidden = [Path(mount.target) for mount in mounts]
        mounts += [
            Mount(path, str(path), True)
            for path in IMAGE
            if any(path.is_relative_to(target) for target in hidden)
        ]
        root = self.folder / f"{container.name}.root"
        namespace = self.network.namespaces[self.pod["metadata"]["uid"]]
        return Box(namespace, name[:63], root, mounts)

    def _launch(self, container: Container) -> Launch:
        pod = {**self.pod, "status": {"podIP": self.address, "hostIP": self.network.gateway}}
        return launch(self.api, pod, container.spec, self.image, self.cluster)

    async def _run(self) -> None:
        self.write_status()
        await self._until_possible(self.volumes.prepare, [*self.first, *self.main])
        for container in self.first:
            await self._begin(container)
        self.is_initialized = True
        policy = self.pod["spec"]["restartPolicy"]
        for container in self.main:
            await self._launchable(container)
            self._keep(container, policy)
        await asyncio.gather(*(self._keeping[c.name] for c in self.main))
        for container in self.first:
            await self._end(container, 1.0)
        self.write_status()

    async def _begin(self, container: Container) -> None:
        """Run an init container to its end; one that is restarted always is a sidecar."""
        await self._launchable(container)
        if container.spec.get("restartPolicy") == "Always":
            self._keep(container, "Always")
            while not container.is_started:
                await asyncio.sleep(_RETRY_S / 4)
            return
        policy = "Never" if self.pod["spec"]["restartPolicy"] == "Never" else "OnFailure"
        self._keep(container, policy)
        await self._keeping[container.name]

    def _keep(self, container: Container, policy: str) -> None:
        keeping = container.keep(self._box(container), lambda: self._launch(container), policy)
        self._keeping[container.name] = asyncio.create_task(keeping)

    async def _launchable(self, container: Container) -> None:
        await self._until_possible(lambda: self._launch(container), [container])

    async def _until_possible(self, work: Callable[[], object], waiting: list[Container]) -> None:
        """Try until nothing is missing any more; meanwhile the containers say what is."""
        while True:
            try:
                work()
            except NotYetError as error:
                for container in waiting:
                    container.wait_for(error.reason, str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def end(self, grace_s: float, when_done: Callable[[], None]) -> None:
        """Begin to end the pod, once."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._finish(grace_s, when_done))

    async def _finish(self, grace_s: float, when_done: Callable[[], None]) -> None:
        self.write_status()
        await asyncio.gather(*(self._end(container, grace_s) for container in self.main))
        # sidecars go after those that they serve, the last one first
        for container in reversed(self.first):
            await self._end(container, grace_s)
        await self.close()
        when_done()

    async def _end(self, container: Container, grace_s: float) -> None:
        await container.stop(grace_s)
        keeping = self._keeping.get(container.name)
        if keeping is not None:
            # It may sleep between two starts.
            await asyncio.wait([keeping], timeout=1.0)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def close(self) -> None:
        """Leave no process, no network and no volume; the logs stay."""
        tasks = [self._running, *self._keeping.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.network.detach(self.pod["metadata"]["uid"])
        self.volumes.remove()

    def failure(self) -> BaseException | None:
        """What broke in the worker itself."""
        tasks = [self._running, *self._keeping.values()]
        tasks += [] if self._ending is None else [self._ending]
        done = [task for task in tasks if task.done() and not task.cancelled()]
        return next((e for e in (task.exception() for task in done) if e is not None), None)

    def _phase(self) -> str:
        codes = [container.exit_code for container in self.main]
        is_over = self._running_is_over() and None not in codes
        if is_over:
            return "Succeeded" if not any(codes) else "Failed"
        has_begun = any("waiting" not in c.state or c.restarts for c in self.main)
        return "Running" if has_begun else "Pending"

    def _running_is_over(self) -> bool:
        tasks = [self._keeping.get(c.name) for c in self.main]
        return all(task is not None and task.done() for task in tasks)

    def write_status(self) -> None:
        is_ready = self.is_initialized and all(c.is_ready for c in self.main)
        try:
            live = self.api.get(
                self.api.resources.by_plural("pods"),
                self.pod["metadata"]["namespace"],
                self.pod["metadata"]["name"],
            )
        except ApiError:
            return
        if live["metadata"]["uid"] != self.pod["metadata"]["uid"]:
            return
        conditions = live.get("status", {}).get("conditions") or []
        for kind, is_true in (
            ("Initialized", self.is_initialized),
            ("ContainersReady", is_ready),
            ("Ready", is_ready),
        ):
            conditions = with_condition(conditions, kind, is_true, "Kubelet")
        status = {
            "phase": self._phase(),
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "hostIP": self.network.gateway,
            "startTime": self.started_at,
            "conditions": conditions,
            "containerStatuses": [container.status() for container in self.main],
        }
        if self.first:
            status["initContainerStatuses"] = [container.status() for container in self.first]
        pods.write_status(self.api, live, status)
