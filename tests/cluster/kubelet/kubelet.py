"""The kubelet of all nodes: a process for each container, and their logs."""

import asyncio
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.controllers import pods
from tests.cluster.kubelet.environment import Image
from tests.cluster.kubelet.network import Network
from tests.cluster.kubelet.volumes import Volumes
from tests.cluster.kubelet.worker import Worker
from tests.cluster.objects import Json, is_ending
from tests.cluster.refusals import ApiError

# Published images, and what they start
ENTRYPOINTS = {
    "flwr/superlink": ["flower-superlink"],
    "flwr/supernode": ["flower-supernode"],
    "flwr/superexec": ["flower-superexec"],
    "uncurtail": ["uncurtail"],  # deploy/Dockerfile
}


def local_image() -> Image:
    """This machine as an image: its programs are those of the tests' own environment."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {key: os.environ[key] for key in ("PYTHONPATH", "LANG") if key in os.environ}
    return Image({"PATH": programs, "HOME": "/root", **kept}, ENTRYPOINTS)


@dataclass
class Kubelet:
    """Starts a worker for each pod that has a node, and takes pods away that have ended."""

    cluster: Cluster
    network: Network
    image: Image = field(default_factory=local_image)
    workers: dict[str, Worker] = field(default_factory=dict)

    def step(self, api: Api) -> None:
        here = {p["metadata"]["uid"]: p for p in api.list("pods") if p["spec"].get("nodeName")}
        for uid, pod in here.items():
            worker = self.workers.get(uid)
            if worker is None and not is_ending(pod) and not pods.has_ended(pod):
                self.workers[uid] = self._start(api, pod)
            elif is_ending(pod):
                self._end(api, pod, worker)
        for uid, worker in list(self.workers.items()):
            if (failure := worker.failure()) is not None:
                raise failure
            if uid not in here:
                self._end(api, worker.pod, worker)
            else:
                worker.refresh_hosts()
                if worker.is_initialized:
                    worker.volumes.refresh()

    def _start(self, api: Api, pod: Json) -> Worker:
        metadata = pod["metadata"]
        folder = self.cluster.folder / "pods" / metadata["namespace"] / metadata["uid"]
        account = pod["spec"].get("serviceAccountName", "default")
        token = self.cluster.service_account_token(metadata["namespace"], account)
        claims = self.cluster.folder / "claims"
        volumes = Volumes(api, pod, folder / "volumes", claims, self.cluster.ca, token)
        server = {
            "KUBERNETES_SERVICE_HOST": self.network.gateway,
            "KUBERNETES_SERVICE_PORT": str(self.cluster.server.port),
        }
        return Worker(api, pod, self.network, volumes, self.image, folder, server)

    def _end(self, api: Api, pod: Json, worker: Worker | None) -> None:
        uid = pod["metadata"]["uid"]
        if worker is None:
            api.finish(api.resource_of(pod), pod)
            return

        def done() -> None:
            self.workers.pop(uid, None)
            api.finish(api.resource_of(pod), pod)

        worker.end(float(pod["metadata"].get("deletionGracePeriodSeconds") or 0), done)

    async def stop(self) -> None:
        """End all pods at once."""
        await asyncio.gather(*(self._stop(worker) for worker in self.workers.values()))
        self.workers.clear()

    async def _stop(self, worker: Worker) -> None:
        await asyncio.gather(*(c.stop(0) for c in [*worker.main, *worker.first]))
        await worker.close()

    async def logs(self, request: web.Request, pod: Json) -> web.StreamResponse:
        """Answer `kubectl logs`, also with --tail, --previous and --follow."""
        metadata = pod["metadata"]
        folder = self.cluster.folder / "pods" / metadata["namespace"] / metadata["uid"]
        names = [c["name"] for c in pod["spec"]["containers"]]
        known = [*names, *(c["name"] for c in pod["spec"].get("initContainers") or [])]
        name = request.query.get("container") or names[0]
        path = folder / f"{name}.log"
        if request.query.get("previous") == "true":
            path = path.with_suffix(".previous")
        if name not in known or not path.exists():
            raise ApiError(400, "BadRequest", f'container "{name}" has no log')
        lines = path.read_bytes().splitlines(keepends=True)
        if tail := request.query.get("tailLines"):
            lines = lines[-int(tail) :] if int(tail) else []
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        await response.write(b"".join(lines))
        if request.query.get("follow") == "true":
            await self._follow(response, path, metadata["uid"])
        await response.write_eof()
        return response

    async def _follow(self, response: web.StreamResponse, path: Path, uid: str) -> None:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            while uid in self.workers:
                await response.write(file.read())
                await asyncio.sleep(0.1)
