"""Deployments and ReplicaSets: a new set grows while the old ones shrink."""

from tests.cluster.api import WRITE, Api
from tests.cluster.controllers import pods
from tests.cluster.objects import Json, dig, is_ending, labels_of, owner_reference, with_condition

HASH = "pod-template-hash"


class ReplicaSets:
    """Keeps as many pods as each set wants, whichever they are."""

    def step(self, api: Api) -> None:
        for thing in api.list("replicasets"):
            if not is_ending(thing):
                _fill(api, thing)


def _fill(api: Api, thing: Json) -> None:
    wanted, name = thing["spec"]["replicas"], thing["metadata"]["name"]
    mine = [p for p in pods.owned_by(api, thing) if not is_ending(p) and not pods.has_ended(p)]
    for _ in range(wanted - len(mine)):
        pod = pods.from_template(thing, thing["spec"]["template"], generateName=f"{name}-")
        if not pods.create(api, thing, pod):
            break
    # Those that are not ready go first.
    for pod in sorted(mine, key=pods.is_up)[: max(len(mine) - wanted, 0)]:
        pods.delete(api, pod)
    mine = [p for p in pods.owned_by(api, thing) if not is_ending(p) and not pods.has_ended(p)]
    ready = sum(pods.is_up(pod) for pod in mine)
    status = {
        "observedGeneration": thing["metadata"]["generation"],
        "replicas": len(mine),
        "fullyLabeledReplicas": len(mine),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
    pods.write_status(api, thing, status)


class Deployments:
    """Moves each Deployment from its old sets to the one of its template."""

    def step(self, api: Api) -> None:
        for thing in api.list("deployments"):
            if not is_ending(thing) and not thing["spec"].get("paused"):
                _roll(api, thing)


def _roll(api: Api, thing: Json) -> None:
    spec, wanted = thing["spec"], thing["spec"]["replicas"]
    mark = pods.revision_of(spec["template"])
    sets = pods.owned_by(api, thing, "replicasets")
    new = next((s for s in sets if labels_of(s).get(HASH) == mark), None)
    old = [s for s in sets if s is not new and not is_ending(s)]
    if new is None:
        pods.create(api, thing, _set_of(thing, mark))
    else:
        rolling = spec["strategy"].get("rollingUpdate")
        if rolling is None:
            _recreate(api, wanted, new, old)
        else:
            _shift(api, wanted, rolling, new, old)
    _write_status(api, thing, mark)


def _set_of(thing: Json, mark: str) -> Json:
    template = thing["spec"]["template"]
    labels = {**(template["metadata"].get("labels") or {}), HASH: mark}
    selector = thing["spec"]["selector"]
    matching = {**(selector.get("matchLabels") or {}), HASH: mark}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{thing['metadata']['name']}-{mark}",
            "namespace": thing["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(thing)],
        },
        "spec": {
            "replicas": 0,
            "selector": {**selector, "matchLabels": matching},
            "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
        },
    }


def _scale(api: Api, thing: Json, replicas: int) -> None:
    api.change(thing, lambda s: s["spec"].update(replicas=replicas), WRITE)


def _number(thing: Json, key: str) -> int:
    return int((thing.get("status") or {}).get(key, 0))


def _recreate(api: Api, wanted: int, new: Json, old: list[Json]) -> None:
    for thing in old:
        _scale(api, thing, 0)
    if not any(pods.owned_by(api, thing) for thing in old):
        _scale(api, new, wanted)


def _shift(api: Api, wanted: int, rolling: Json, new: Json, old: list[Json]) -> None:
    """Grow the new set as far as the surge lets it, shrink the old ones by what is available."""
    surge = pods.count_of(rolling["maxSurge"], wanted, rounds_up=True)
    missing = pods.count_of(rolling["maxUnavailable"], wanted, rounds_up=False)
    others = sum(thing["spec"]["replicas"] for thing in old)
    grown = min(wanted, max(wanted + surge - others, 0))
    if grown > new["spec"]["replicas"] or not others:
        _scale(api, new, grown if others else wanted)
    available = sum(_number(thing, "availableReplicas") for thing in [new, *old])
    spare = available - (wanted - missing)
    for thing in old:
        replicas = thing["spec"]["replicas"]
        broken = replicas - _number(thing, "availableReplicas")
        cut = min(replicas, max(broken, 0) + max(spare, 0))
        if cut > 0:
            _scale(api, thing, replicas - cut)
            spare -= max(cut - max(broken, 0), 0)


def _write_status(api: Api, thing: Json, mark: str) -> None:
    sets = pods.owned_by(api, thing, "replicasets")
    wanted = thing["spec"]["replicas"]
    available = sum(_number(s, "availableReplicas") for s in sets)
    updated = sum(_number(s, "replicas") for s in sets if labels_of(s).get(HASH) == mark)
    conditions = dig(thing, "status.conditions") or []
    is_available = available >= wanted
    reason = "MinimumReplicasAvailable" if is_available else "MinimumReplicasUnavailable"
    conditions = with_condition(conditions, "Available", is_available, reason)
    replicas = sum(_number(s, "replicas") for s in sets)
    is_done = is_available and updated == replicas == wanted
    reason = "NewReplicaSetAvailable" if is_done else "ReplicaSetUpdated"
    conditions = with_condition(conditions, "Progressing", True, reason)
    status = {
        "observedGeneration": thing["metadata"]["generation"],
        "replicas": replicas,
        "updatedReplicas": updated,
        "readyReplicas": sum(_number(s, "readyReplicas") for s in sets),
        "availableReplicas": available,
        "unavailableReplicas": max(wanted - available, 0),
        "conditions": conditions,
    }
    pods.write_status(api, thing, status)
