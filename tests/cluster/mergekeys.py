"""The fields by which the items of a list are told apart; a list without them is one value."""

from typing import Any

from tests.cluster.objects import Json

# Where several are listed, the first that all items have
_BUILT_IN: dict[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "ephemeralContainers": (("name",),),
    "volumes": (("name",),),
    "env": (("name",),),
    "imagePullSecrets": (("name",),),
    "secrets": (("name",),),
    "volumeMounts": (("mountPath",),),
    "volumeDevices": (("devicePath",),),
    "hostAliases": (("ip",),),
    # Besides, Kubernetes tells ports apart by protocol; nothing here serves one port in two.
    "ports": (("containerPort",), ("port",)),
    "conditions": (("type",),),
    "ownerReferences": (("uid",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "taints": (("key", "effect"),),
}
# Lists of plain values that are merged as sets
SETS = {"finalizers"}


def keys_of(field: str, items: list[Any], schema: Json | None) -> tuple[str, ...] | None:
    """The keys of a list's items: as the CRD says, or as the built-in kinds have them."""
    if not all(isinstance(item, dict) for item in items):
        return None
    if schema is not None:
        keys = schema.get("x-kubernetes-list-map-keys")
        return tuple(keys) if keys else None
    for keys in _BUILT_IN.get(field, ()):
        if all(key in item for item in items for key in keys):
            return keys
    return None


def inner_schema(schema: Json | None, key: str) -> Json | None:
    """The schema of a field; None where the kind is built in."""
    if schema is None:
        return None
    inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return inner if isinstance(inner, dict) else {}
