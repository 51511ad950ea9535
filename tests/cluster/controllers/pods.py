"""What all controllers of pods share: pods from a template, whose they are, and how they are."""

import copy
import hashlib
import json
from typing import Any

from tests.cluster.api import STATUS, WRITE, Api
from tests.cluster.objects import (
    Json,
    controller_of,
    dig,
    is_ending,
    is_ready,
    labels_of,
    micro_timestamp,
    owner_reference,
    timestamp,
)
from tests.cluster.refusals import ApiError

REVISION = "controller-revision-hash"


def revision_of(template: Json) -> str:
    """A name for a template: another one for each difference."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def owned_by(api: Api, owner: Json, plural: str = "pods") -> list[Json]:
    """What an object controls, of one kind, in the order of names."""
    uid = owner["metadata"]["uid"]
    found = api.list(plural, owner["metadata"]["namespace"])
    return [thing for thing in found if controller_of(thing) == uid]


def from_template(owner: Json, template: Json, **metadata: Any) -> Json:
    """A pod of an owner; `metadata` names it, and its labels are added to those of the template."""
    inner = template.get("metadata") or {}
    labels = {**(inner.get("labels") or {}), **metadata.pop("labels", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": owner["metadata"]["namespace"],
            "labels": labels,
            "annotations": dict(inner.get("annotations") or {}),
            "ownerReferences": [owner_reference(owner)],
            **metadata,
        },
        "spec": copy.deepcopy(template["spec"]),
    }


def create(api: Api, owner: Json, thing: Json) -> bool:
    """Create something for an owner; a refusal becomes an Event, as in a cluster."""
    resource = api.resource_of(thing)
    try:
        api.create(resource, owner["metadata"]["namespace"], thing, WRITE)
    except ApiError as error:
        report(api, owner, "FailedCreate", f"create {thing['kind']} failed: {error.message}")
        return False
    return True


def delete(api: Api, pod: Json) -> None:
    metadata = pod["metadata"]
    api.delete(api.resource_of(pod), metadata["namespace"], metadata["name"])


def report(api: Api, about: Json, reason: str, message: str, kind: str = "Warning") -> None:
    """Write an Event, once for each thing to say about an object."""
    metadata = about["metadata"]
    mark = hashlib.sha256(f"{metadata['uid']}{reason}{message}".encode()).hexdigest()[:12]
    name = f"{metadata['name']}.{mark}"
    namespace = metadata.get("namespace", "default")
    if any(event["metadata"]["name"] == name for event in api.list("events", namespace)):
        return
    involved = {key: metadata.get(key) for key in ("name", "namespace", "uid")}
    event = {
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"apiVersion": about["apiVersion"], "kind": about["kind"], **involved},
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": timestamp(),
        "lastTimestamp": timestamp(),
        "eventTime": micro_timestamp(),
        "source": {"component": "ground"},
        "reportingComponent": "ground",
        "reportingInstance": "ground",
        "action": reason,
    }
    api.create(api.resources.by_plural("events"), namespace, event)


def is_up(pod: Json) -> bool:
    return is_ready(pod) and not is_ending(pod)


def has_ended(pod: Json) -> bool:
    return dig(pod, "status.phase") in ("Succeeded", "Failed")


def is_of(pod: Json, revision: str) -> bool:
    return labels_of(pod).get(REVISION) == revision


def write_status(api: Api, thing: Json, status: Json) -> None:
    """Write what is new in a status, keeping what others wrote."""
    before = thing.get("status") or {}
    if all(key in before and before[key] == value for key, value in status.items()):
        return
    api.change(thing, lambda t: t.update(status={**t.get("status", {}), **status}), STATUS)


def count_of(amount: int | str, whole: int, rounds_up: bool) -> int:
    """A number, or a share such as 25%."""
    if isinstance(amount, int):
        return amount
    share = whole * int(amount.removesuffix("%"))
    return -(-share // 100) if rounds_up else share // 100
