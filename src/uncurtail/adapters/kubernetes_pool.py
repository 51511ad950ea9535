"""A site as a pool of a Federation: its sessions are the pool's one replica, scaled 1 and 0.

The operator makes the pod from the Federation's own template and drains it; the run scales the
`SuperNodePool`, which says whose session it is. The pool is this run's alone: one that another run
or a person has scaled is left as it is.
"""

from collections.abc import Mapping, Sequence

from uncurtail.adapters.kubernetes import (
    MANAGER,
    POD,
    SECRET,
    digest,
    gone,
    secret,
    state_of,
)
from uncurtail.adapters.kubernetes_api import Api, Kind, KubeError, Manifest
from uncurtail.core.nodes import Node, NodeState
from uncurtail.operator.names import API_VERSION, DRAINED, GROUP, POOL_LABEL

POOL = Kind("SuperNodePool", API_VERSION, "supernodepools")
CLAIMS = 5
SESSION = f"{GROUP}/uncurtail-session"  # run, site and session, on the SuperNodePool


def secret_name(workload: str) -> str:
    """The Secret that the pool's template reads as environment."""
    return f"{workload}-session"


class PoolPlace:
    """One pool for the sessions of one site."""

    def __init__(
        self, api: Api, run_id: str, site: str, namespace: str, federation: str, pool: str
    ) -> None:
        """Nothing is asked before the first call."""
        self._api = api
        self._run = digest(run_id)
        self._site = site
        self._namespace = namespace
        self._labels = f"app.kubernetes.io/instance={federation},{POOL_LABEL}={pool}"
        self._name = f"{federation}-supernode-{pool}"
        self._path = POOL.path(namespace, self._name)
        self._pods: dict[int, str] = {}  # a session's pod, by uid, since it was first seen

    def look(self) -> Sequence[Node]:
        """The session whose replica is wanted, or whose pod is still there."""
        found = self._api.find(self._path)
        session = None if found is None else self._session(found)
        if found is None or session is None:
            return []
        pods = self._living()
        if _replicas(found) == 0:
            return [self._node(session, NodeState.LEAVING)] if pods else []
        if not pods:
            return [self._node(session, NodeState.STARTING)]
        pod = pods[0]
        uid = str(pod["metadata"]["uid"])
        state, why = state_of(pod)
        if self._pods.setdefault(session, uid) != uid:
            state, why = NodeState.FAILED, "its pod was replaced by another"
        elif state is NodeState.LEAVING:
            # Evicted: it is wanted, and will be replaced.
            state, why = NodeState.FAILED, "its pod is being taken away"
        return [self._node(session, state, why)]

    def create(self, session: int, environment: Mapping[str, str]) -> None:
        """Write what the pod is told, say whose session it is, and scale to one."""
        found = self._free()
        told = secret(secret_name(self._name), self._namespace, found, environment)
        self._api.apply(self._secret, told, MANAGER)
        self._claim(session, found)
        self._scale(1)

    def delete(self, node: Node) -> None:
        """Scale to none. The pod need not be waited for: its session is drained, or lost."""
        found = self._api.find(self._path)
        if found is None or self._session(found) != node.session:
            return
        self._scale(0)
        for pod in self._living():
            path = POD.path(self._namespace, pod["metadata"]["name"])
            try:
                self._api.merge(path, {"metadata": {"annotations": {DRAINED: "true"}}}, MANAGER)
            except KubeError as error:
                if error.code != 404:
                    raise
        gone(self._api, self._secret)

    def _free(self) -> Manifest:
        """The pool, if it is ours to scale."""
        found = self._api.find(self._path)
        if found is None:
            raise KubeError(
                f"there is no SuperNodePool {self._name} in namespace {self._namespace}: apply a "
                "Federation in mode StatefulSet with that pool, where the operator runs"
            )
        if _replicas(found) and self._session(found) is None:
            raise KubeError(
                f"SuperNodePool {self._name} is scaled up, and not by this run: scale it to 0, or "
                "name another pool"
            )
        return found

    def _claim(self, session: int, found: Manifest) -> None:
        """Write whose session the pool is."""
        for tried in range(CLAIMS):
            meta = {
                "annotations": {SESSION: f"{self._run}.{self._site}.{session}"},
                # Of two runs that take it at once, one has a conflict.
                "resourceVersion": found["metadata"]["resourceVersion"],
            }
            try:
                self._api.merge(self._path, {"metadata": meta}, MANAGER)
            except KubeError as error:
                if error.code != 409 or tried + 1 == CLAIMS:
                    raise
                # Most often it was the operator, with its status.
                found = self._free()
            else:
                return

    @property
    def _secret(self) -> str:
        return SECRET.path(self._namespace, secret_name(self._name))

    def _scale(self, replicas: int) -> None:
        path = POOL.path(self._namespace, self._name, "scale")
        self._api.merge(path, {"spec": {"replicas": replicas}}, MANAGER)

    def _living(self) -> list[Manifest]:
        listed = self._api.get(POD.path(self._namespace), self._labels)
        pods: list[Manifest] = listed.get("items") or []
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def _session(self, pool: Manifest) -> int | None:
        said = (pool["metadata"].get("annotations") or {}).get(SESSION, "")
        run, _, rest = said.partition(".")
        site, _, number = rest.rpartition(".")
        ours = (run, site) == (self._run, self._site) and number.isdecimal()
        return int(number) if ours else None

    def _node(self, session: int, state: NodeState, why: str = "") -> Node:
        return Node(self._site, session, f"{self._namespace}/{self._name}", state, why)


def _replicas(pool: Manifest) -> int:
    return int((pool.get("spec") or {}).get("replicas", 0))
