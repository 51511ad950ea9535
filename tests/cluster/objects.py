"""What a Kubernetes object is here: JSON, its key, and the fields that all kinds share."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Where an object is stored; a cluster's own objects have no namespace."""

    group: str
    plural: str
    namespace: str
    name: str


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def labels_of(thing: Json) -> dict[str, str]:
    return thing["metadata"].get("labels") or {}


def owners_of(thing: Json) -> list[Json]:
    return thing["metadata"].get("ownerReferences") or []


def controller_of(thing: Json) -> str | None:
    """The uid of the owner that manages this object."""
    return next((ref["uid"] for ref in owners_of(thing) if ref.get("controller")), None)


def is_ending(thing: Json) -> bool:
    return "deletionTimestamp" in thing["metadata"]


def finalizers_of(thing: Json) -> list[str]:
    return thing["metadata"].get("finalizers") or []


def owner_reference(owner: Json) -> Json:
    """The reference by which a controller of the cluster marks what it made."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def dig(thing: Any, dotted: str) -> Any:
    """The value at a dotted path, or None where the path ends early."""
    for part in dotted.split("."):
        if not isinstance(thing, dict) or part not in thing:
            return None
        thing = thing[part]
    return thing


def is_ready(thing: Json, condition: str = "Ready") -> bool:
    conditions = dig(thing, "status.conditions") or []
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def with_condition(conditions: list[Json], kind: str, is_true: bool, reason: str) -> list[Json]:
    """The conditions with one replaced; its time of transition changes only with its status."""
    status = "True" if is_true else "False"
    before = next((c for c in conditions if c["type"] == kind), None)
    since = before["lastTransitionTime"] if before and before["status"] == status else timestamp()
    fresh = {"type": kind, "status": status, "reason": reason, "lastTransitionTime": since}
    return [*(c for c in conditions if c["type"] != kind), fresh]
