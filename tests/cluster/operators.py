"""`uncurtail operator run` against the cluster of the tests: installed as by the chart, and run."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.charts import OPERATOR, rendered
from tests.cluster.api import Api
from tests.cluster.clients import Rest
from tests.cluster.cluster import Cluster
from tests.cluster.objects import Json
from tests.cluster.samples import CRDS
from tests.federation.federations import manifest
from uncurtail.adapters.redis_server import free_port
from uncurtail.operator.crd import crds

GROUP = "/apis/flwr.exalsius.ai/v1"
FEDERATIONS = f"{GROUP}/namespaces/ml/federations"
POOLS = f"{GROUP}/namespaces/ml/supernodepools"
SETS = "/apis/apps/v1/namespaces/ml/statefulsets"
PODS = "/api/v1/namespaces/ml/pods"
EVENTS = "/api/v1/namespaces/ml/events"
# A process that imports and connects takes seconds on shared cores.
START_S = 60.0


def install(admin: Rest) -> None:
    """What `helm install` brings, without the Deployment: the CRDs and the operator's roles."""
    for crd in crds():
        admin.done(admin.post(CRDS, crd))
    for name in ("ml", "flower-system"):
        make_namespace(admin, name)
    for thing in rendered(OPERATOR, "flower", "flower-system"):
        if "rbac" in thing["apiVersion"]:
            post(admin, thing)


def make_namespace(admin: Rest, name: str) -> None:
    thing = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    admin.done(admin.post("/api/v1/namespaces", thing))


def post(admin: Rest, thing: Json) -> None:
    """Make an object of the chart, which says by itself where it belongs."""
    version, namespace = thing["apiVersion"], thing["metadata"].get("namespace")
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    where = f"/namespaces/{namespace}" if namespace else ""
    admin.done(admin.post(f"{root}{where}/{thing['kind'].lower()}s", thing))


def federation(*pools: Json, **more: object) -> Json:
    """A Federation to post: the server gives it its uid."""
    made = manifest(*pools, **more)
    for key in ("uid", "generation"):
        del made["metadata"][key]
    return made


class Operator:
    """The operator in a process of its own, with the rights that the chart gives it."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *options: str) -> None:
        token = cluster.service_account_token("flower-system", "flower")
        self.log = folder / f"{name}.log"
        self.health, self.metrics = free_port(), free_port()
        ports = [f"--health-port={self.health}", f"--metrics-port={self.metrics}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uncurtail", "operator", "run", *ports, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "KUBECONFIG": str(cluster.kubeconfig(token, name)),
                    "POD_NAMESPACE": "flower-system",
                },
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """As the kubelet does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def condition(api: Api, kind: str, name: str = "fed") -> Json:
    """A condition of a Federation; empty while it is not said."""
    for thing in api.list("federations"):
        if thing["metadata"]["name"] == name:
            said = thing.get("status", {}).get("conditions") or []
            return next((dict(c) for c in said if c["type"] == kind), {})
    return {}


def holds(kind: str, status: str = "True", name: str = "fed") -> Callable[[Api], bool]:
    return lambda api: condition(api, kind, name).get("status") == status


def has_gone(api: Api) -> bool:
    return not api.list("federations")


def supernodes(api: Api) -> list[str]:
    return sorted(n for p in api.list("pods") if "supernode" in (n := p["metadata"]["name"]))
