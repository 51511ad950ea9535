"""Nodes that exist as objects alone: which pods fit where, cordons, and the scheduler."""

from collections.abc import Iterator

from tests.cluster.api import STATUS, Api
from tests.cluster.controllers import pods
from tests.cluster.objects import Json, dig, is_ending, is_ready, labels_of, with_condition

CORDONED = "node.kubernetes.io/unschedulable"


def node(name: str, gpus: int = 0, **labels: str) -> Json:
    """A node with a number of GPUs, ready from the start."""
    amount = {"cpu": "16", "memory": "64Gi", "pods": "110"}
    if gpus:
        amount["nvidia.com/gpu"] = str(gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": {},
        "status": {
            "capacity": amount,
            "allocatable": amount,
            "conditions": with_condition([], "Ready", True, "KubeletReady"),
        },
    }


def add(api: Api, *nodes: Json) -> None:
    """Put nodes into a cluster, with their status."""
    resource = api.resources.by_plural("nodes")
    for made in nodes:
        found = api.create(resource, "", made)
        api.update(resource, {**found, "status": made["status"]}, STATUS)


def tolerates(spec: Json, taint: Json) -> bool:
    for toleration in spec.get("tolerations") or []:
        is_key = toleration.get("key") in (None, taint["key"])
        is_effect = toleration.get("effect") in (None, "", taint["effect"])
        is_any = toleration.get("operator") == "Exists"
        if is_key and is_effect and (is_any or toleration.get("value") == taint.get("value")):
            return True
    return False


def suits(spec: Json, target: Json) -> bool:
    """Whether a node has the labels that a pod asks for."""
    labels = labels_of(target)
    if not (spec.get("nodeSelector") or {}).items() <= labels.items():
        return False
    required = dig(spec, "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution")
    terms = (required or {}).get("nodeSelectorTerms")
    return not terms or any(_meets(term, labels) for term in terms)


def _meets(term: Json, labels: dict[str, str]) -> bool:
    for wish in term.get("matchExpressions") or []:
        value, listed = labels.get(wish["key"]), wish.get("values") or []
        is_met = {
            "In": value in listed,
            "NotIn": value not in listed,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(wish["operator"], False)
        if not is_met:
            return False
    return True


def is_tolerated(spec: Json, target: Json, ignoring: str = "") -> bool:
    taints = dig(target, "spec.taints") or []
    return all(
        tolerates(spec, taint)
        for taint in taints
        if taint["effect"] != "PreferNoSchedule" and taint["key"] != ignoring
    )


def _devices(spec: Json) -> dict[str, int]:
    """The extended resources of a pod: GPUs and the like."""
    wanted: dict[str, int] = {}
    for container in spec["containers"]:
        for name, amount in (dig(container, "resources.requests") or {}).items():
            if "/" in name:
                wanted[name] = wanted.get(name, 0) + int(amount)
    return wanted


def _taint(api: Api, target: Json, taints: list[Json]) -> None:
    api.change(target, lambda n: n["spec"].update(taints=taints))


class Cordons:
    """Cordoned nodes carry a taint; pods of a node that is gone go, too."""

    def step(self, api: Api) -> None:
        known = set()
        for target in api.list("nodes"):
            known.add(target["metadata"]["name"])
            taints = target["spec"].get("taints") or []
            has_taint = any(taint["key"] == CORDONED for taint in taints)
            if bool(target["spec"].get("unschedulable")) != has_taint:
                rest = [taint for taint in taints if taint["key"] != CORDONED]
                mark = [] if has_taint else [{"key": CORDONED, "effect": "NoSchedule"}]
                _taint(api, target, [*rest, *mark])
        for pod in api.list("pods"):
            where = pod["spec"].get("nodeName")
            if where and where not in known:
                api.finish(api.resource_of(pod), pod)


class Scheduler:
    """Gives each pod the node that has the fewest, of those that suit it and have room."""

    def step(self, api: Api) -> None:
        for pod in api.list("pods"):
            if not pod["spec"].get("nodeName") and not is_ending(pod):
                self._place(api, pod)

    def _place(self, api: Api, pod: Json) -> None:
        targets = sorted(self._fitting(api, pod["spec"]))
        if targets:
            name = targets[0][1]
            api.change(pod, lambda p: p["spec"].update(nodeName=name))
        else:
            pods.report(api, pod, "FailedScheduling", "0 nodes are available")
        conditions = dig(pod, "status.conditions") or []
        reason = "Scheduled" if targets else "Unschedulable"
        fresh = with_condition(conditions, "PodScheduled", bool(targets), reason)
        pods.write_status(api, pod, {"conditions": fresh})

    def _fitting(self, api: Api, spec: Json) -> Iterator[tuple[int, str]]:
        everywhere = [pod for pod in api.list("pods") if not pods.has_ended(pod)]
        for target in api.list("nodes"):
            name = target["metadata"]["name"]
            here = [pod for pod in everywhere if pod["spec"].get("nodeName") == name]
            has_room = all(
                int(dig(target, "status.allocatable").get(device, 0))
                >= amount + sum(_devices(pod["spec"]).get(device, 0) for pod in here)
                for device, amount in _devices(spec).items()
            )
            is_open = is_ready(target) and not target["spec"].get("unschedulable")
            if is_open and has_room and suits(spec, target) and is_tolerated(spec, target):
                yield len(here), name
