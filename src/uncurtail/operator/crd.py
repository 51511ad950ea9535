"""The CustomResourceDefinitions, made from the models: one source of schema and rules."""

from uncurtail.operator.fields import KubeSection, Manifest
from uncurtail.operator.names import API_VERSION, GROUP
from uncurtail.operator.rules import NAME_RULES, SPEC_RULES
from uncurtail.operator.spec import FederationSpec, SuperNodePoolSpec

# What a structural schema may not hold, or has no use for.
_DROPPED = frozenset({"title", "$defs", "additionalProperties"})


def crds() -> list[Manifest]:
    """Both of them, as `kubectl apply` takes them."""
    return [_federation(), _supernode_pool()]


def structural(model: type[KubeSection]) -> Manifest:
    """A model's JSON schema as a structural schema: no references, no nulls, no unknown fields."""
    schema = model.model_json_schema(by_alias=True)
    return _node(schema, schema.get("$defs", {}))


def _node(node: Manifest, defs: Manifest) -> Manifest:
    node = _without_null(node)
    if "$ref" in node:
        # What is said of the field counts, not what is said of its type.
        named = defs[node["$ref"].rpartition("/")[2]]
        node = {**named, **{key: value for key, value in node.items() if key != "$ref"}}
    made: Manifest = {}
    for key, value in node.items():
        match key:
            case "properties":
                made[key] = {name: _node(each, defs) for name, each in value.items()}
            case "items":
                made[key] = _node(value, defs)
            case "additionalProperties" if isinstance(value, dict):
                made[key] = _node(value, defs)
            case "default" if value is None or isinstance(value, dict | list):
                pass  # an absent object is as good as an empty one, and shorter
            case "description":
                made[key] = " ".join(value.split())
            case _:
                made |= {} if key in _DROPPED else {key: value}
    return made


def _without_null(node: Manifest) -> Manifest:
    """An optional field is one that may be left out; it is never null."""
    options = [each for each in node.get("anyOf", []) if each.get("type") != "null"]
    if len(options) != 1:
        return node
    return {**{k: v for k, v in node.items() if k != "anyOf"}, **options[0]}


def _federation() -> Manifest:
    spec = structural(FederationSpec)
    spec["x-kubernetes-validations"] = [_rule(rule.cel, rule.message) for rule in SPEC_RULES]
    schema = _root("One Flower federation: a SuperLink and pools of SuperNodes.", spec)
    schema["x-kubernetes-validations"] = [_rule(rule.cel, rule.message) for rule in NAME_RULES]
    schema["properties"]["status"] = _federation_status()
    version = _version(schema) | {
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            _column("Mode", ".spec.mode"),
            _column("Isolation", ".spec.isolationMode"),
            _column("Supernodes", ".status.supernodes"),
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Paused", '.status.conditions[?(@.type=="Paused")].status', priority=1),
            _column("Reason", '.status.conditions[?(@.type=="Ready")].message', priority=1),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ],
    }
    return _definition("Federation", "federations", ["fedf"], version)


def _supernode_pool() -> Manifest:
    schema = _root(
        "The scale of one pool of a Federation in mode StatefulSet. The operator makes it; "
        "HorizontalPodAutoscalers, KEDA and kubectl scale it.",
        structural(SuperNodePoolSpec),
    )
    number = {"type": "integer", "format": "int32"}
    schema["properties"]["status"] = {
        "type": "object",
        "properties": {
            "replicas": number,
            "readyReplicas": number,
            "selector": {"type": "string"},
            "phase": {"type": "string"},
        },
    }
    version = _version(schema) | {
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            _column("Federation", ".spec.federation"),
            _column("Pool", ".spec.pool"),
            _column("Desired", ".spec.replicas", "integer"),
            _column("Ready", ".status.readyReplicas", "integer"),
            _column("Phase", ".status.phase"),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ],
    }
    return _definition("SuperNodePool", "supernodepools", ["snp"], version)


def _federation_status() -> Manifest:
    number, text = {"type": "integer"}, {"type": "string"}
    condition = {
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": text,
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": text,
            "message": text,
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    }
    pool = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": text,
            "kind": text,
            "desired": number,
            "ready": number,
            "phase": text,
            "draining": {"type": "array", "items": text},
        },
    }
    return {
        "type": "object",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "supernodes": text,
            "readySupernodes": number,
            "desiredSupernodes": number,
            "endpoints": {"type": "object", "properties": {"superlinkService": text}},
            "pools": {"type": "array", "items": pool, **_keyed_by("name")},
            "warnings": {"type": "array", "items": text},
            "conditions": {"type": "array", "items": condition, **_keyed_by("type")},
        },
        # What the wiring keeps there beside it.
        "x-kubernetes-preserve-unknown-fields": True,
    }


def _keyed_by(key: str) -> Manifest:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _root(description: str, spec: Manifest) -> Manifest:
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
        },
    }


def _rule(cel: str, message: str) -> Manifest:
    return {"rule": cel, "message": message}


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Manifest:
    column: Manifest = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


def _version(schema: Manifest) -> Manifest:
    return {
        "name": API_VERSION.rpartition("/")[2],
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }


def _definition(kind: str, plural: str, short: list[str], version: Manifest) -> Manifest:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
            },
            "versions": [version],
        },
    }
