"""Sites on Kubernetes: a session is a pod that runs `uncurtail site join`. Extra: `kubernetes`.

What the pod is told (gate, token, session) is in a Secret beside it. A pod is one session and no
more: one that was started anew, or replaced, has lost its session's key, so its session is over.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from uncurtail.adapters.kubernetes_api import Api, Kind, KubeError, Manifest
from uncurtail.adapters.remote import CloudError
from uncurtail.core.nodes import Node, NodeState

T = TypeVar("T")

MANAGER = "uncurtail"
POD = Kind("Pod", "v1", "pods")
SECRET = Kind("Secret", "v1", "secrets")
# What a container waits for when it will not start by itself.
_UNTOLD = "CreateContainerConfigError"  # its Secret is not there
_ILL = frozenset(
    {
        _UNTOLD,
        "CreateContainerError",
        "CrashLoopBackOff",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
    }
)


class Place(Protocol):
    """Where the sessions of one site run."""

    def look(self) -> Sequence[Node]:
        """The site's pods that are of this run."""
        ...

    def create(self, session: int, environment: Mapping[str, str]) -> None:
        """Make the session's pod, or go on making it."""
        ...

    def delete(self, node: Node) -> None:
        """Begin to end it."""
        ...


class Kubernetes:
    """The `Cloud` of the sites of one cluster. Called by one thread."""

    def __init__(self, context: str | None, places: Mapping[str, Place]) -> None:
        self.name = "kubernetes" if context is None else f"kubernetes {context}"
        self._places = places

    def look(self) -> Sequence[Node]:
        """Every pod of this run."""
        return [node for place in self._places.values() for node in self._asked(place.look)]

    def create(self, site: str, session: int, environment: Mapping[str, str]) -> None:
        """Make the session's pod."""
        self._asked(lambda: self._places[site].create(session, environment))

    def delete(self, node: Node) -> None:
        """Begin to end a pod."""
        self._asked(lambda: self._places[node.site].delete(node))

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except KubeError as error:
            line = f"{self.name}: {error}"
            if error.code in (401, 403):
                line += ": docs/kubernetes.md lists what a run must be allowed to do"
            raise CloudError(line, unsure=error.unsure, retry_after_s=error.retry_after_s) from None


def digest(run_id: str) -> str:
    """A run in a label or a name, which end at 63 characters."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:10]


def secret(name: str, namespace: str, owner: Manifest, told: Mapping[str, str]) -> Manifest:
    """What a pod is told, as variables; it goes with its owner."""
    meta: Manifest = {
        "name": name,
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": MANAGER},
        "ownerReferences": [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
        ],
    }
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.name,
        "metadata": meta,
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in told.items()},
    }


def gone(api: Api, path: str) -> None:
    """Delete an object; one that is not there is what was wanted."""
    try:
        api.delete(path)
    except KubeError as error:
        if error.code != 404:
            raise


def state_of(pod: Manifest) -> tuple[NodeState, str]:
    """What a pod is to us, and what is wrong with it in Kubernetes' own words."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return NodeState.LEAVING, ""
    containers = status.get("containerStatuses") or []
    why = _why(status, containers)
    phase = status.get("phase")
    if phase in ("Succeeded", "Failed"):
        return NodeState.FAILED, why or f"the pod has ended ({phase})"
    if any(container.get("restartCount") for container in containers):
        return NodeState.FAILED, why or "a container ended and was started again"
    if any(_waits(container).get("reason") == _UNTOLD for container in containers):
        return NodeState.PARTIAL, why
    up = phase == "Running" and bool(containers) and all(c.get("ready") for c in containers)
    return (NodeState.READY, "") if up else (NodeState.STARTING, why)


def _waits(container: Manifest) -> Manifest:
    waiting: Manifest = (container.get("state") or {}).get("waiting") or {}
    return waiting


def _why(status: Manifest, containers: Sequence[Manifest]) -> str:
    for container in containers:
        waiting = _waits(container)
        ended = (container.get("state") or {}).get("terminated") or {}
        if waiting.get("reason") in _ILL:
            return _line(waiting["reason"], waiting.get("message"))
        if ended.get("exitCode"):
            return _line(f"exit code {ended['exitCode']}", ended.get("message"))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _line(str(condition.get("reason")), condition.get("message"))
    return _line(status["reason"], status.get("message")) if status.get("reason") else ""


def _line(reason: str, message: object) -> str:
    return " ".join(f"{reason}: {message}".split())[:200] if message else reason
