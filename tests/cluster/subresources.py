"""The parts of objects that have a path of their own: scale, and the eviction of pods."""

import copy
from typing import Any

from tests.cluster.api import Api, Deletion, Write
from tests.cluster.objects import Json, dig, is_ending, is_ready
from tests.cluster.refusals import ApiError, Cause, invalid
from tests.cluster.resources import Resource
from tests.cluster.selectors import by_label_selector

_BUILT_IN = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}


def _paths(resource: Resource) -> Json:
    return resource.scale or _BUILT_IN


def scale_of(resource: Resource, thing: Json) -> Json:
    """An object as an autoscaler sees it."""
    paths = _paths(resource)
    status = {"replicas": dig(thing, paths["statusReplicasPath"][1:]) or 0}
    if "labelSelectorPath" in paths:
        status["selector"] = dig(thing, paths["labelSelectorPath"][1:]) or ""
    elif labels := dig(thing, "spec.selector.matchLabels"):
        status["selector"] = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    metadata = {key: thing["metadata"][key] for key in kept if key in thing["metadata"]}
    # A custom object that says nothing has 0 here, as in the API server.
    replicas = dig(thing, paths["specReplicasPath"][1:]) or 0
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas},
        "status": status,
    }


def rescale(api: Api, resource: Resource, thing: Json, scale: Json, write: Write) -> Json:
    """Write the replicas of a scale into its object."""
    replicas: Any = dig(scale, "spec.replicas") or 0
    if not isinstance(replicas, int) or replicas < 0:
        cause = Cause(
            "spec.replicas", f"Invalid value: {replicas}: must be greater than or equal to 0"
        )
        raise invalid(resource, thing["metadata"]["name"], [cause])
    fresh = copy.deepcopy(thing)
    *way, last = _paths(resource)["specReplicasPath"].lstrip(".").split(".")
    part = fresh
    for key in way:
        part = part.setdefault(key, {})
    part[last] = replicas
    version = dig(scale, "metadata.resourceVersion")
    if version:
        fresh["metadata"]["resourceVersion"] = version
    return scale_of(resource, api.update(resource, fresh, write))


def evict(api: Api, resource: Resource, pod: Json, options: Json) -> Json:
    """Delete a pod unless a PodDisruptionBudget forbids it now (429)."""
    metadata = pod["metadata"]
    for budget in api.list("poddisruptionbudgets", metadata["namespace"]):
        selector = budget["spec"].get("selector")
        if selector is None or not by_label_selector(selector)(pod):
            continue
        peers = [
            p for p in api.list("pods", metadata["namespace"]) if by_label_selector(selector)(p)
        ]
        healthy = [p for p in peers if is_ready(p) and not is_ending(p)]
        if is_ready(pod) and len(healthy) - 1 < least_healthy(budget["spec"], len(peers)):
            raise ApiError(
                429,
                "TooManyRequests",
                "Cannot evict pod as it would violate the pod's disruption budget.",
            )
    grace = (options.get("deleteOptions") or {}).get("gracePeriodSeconds")
    api.delete(resource, metadata["namespace"], metadata["name"], Deletion(grace_s=grace))
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def least_healthy(spec: Json, expected: int) -> int:
    """How many healthy pods a budget wants; a share is rounded up."""
    if "minAvailable" in spec:
        return _count(spec["minAvailable"], expected)
    if "maxUnavailable" in spec:
        return expected - _count(spec["maxUnavailable"], expected)
    return 0


def _count(amount: int | str, whole: int) -> int:
    if isinstance(amount, int):
        return amount
    return -(-whole * int(amount.removesuffix("%")) // 100)
