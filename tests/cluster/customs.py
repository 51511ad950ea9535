"""Kinds that a CustomResourceDefinition adds at run time."""

from collections.abc import Iterator

from tests.cluster import rules
from tests.cluster.objects import Json, timestamp
from tests.cluster.refusals import Cause
from tests.cluster.resources import Column, Resource, Resources


def faults_of(crd: Json) -> Iterator[Cause]:
    """Why a definition is not accepted."""
    spec, name = crd["spec"], crd["metadata"]["name"]
    wanted = f"{spec['names']['plural']}.{spec['group']}"
    if name != wanted:
        yield Cause(
            "metadata.name",
            f'Invalid value: "{name}": must be spec.names.plural+"."+spec.group: {wanted}',
        )
    if sum(version["storage"] for version in spec["versions"]) != 1:
        yield Cause("spec.versions", "must have exactly one version marked as storage version")
    for index, version in enumerate(spec["versions"]):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            yield Cause(path, "Required value: schemas are required", "FieldValueRequired")
            continue
        if schema.get("type") != "object":
            yield Cause(f"{path}.type", 'Invalid value: must be "object" at the root')
        yield from _not_structural(schema, path)
        yield from rules.uncompilable(schema, path)


def _not_structural(schema: Json, path: str) -> Iterator[Cause]:
    is_free = schema.get("x-kubernetes-int-or-string") or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if "type" not in schema and not is_free:
        yield Cause(
            f"{path}.type",
            "Required value: must not be empty for specified object fields",
            "FieldValueRequired",
        )
    if "properties" in schema and isinstance(schema.get("additionalProperties"), dict):
        yield Cause(
            f"{path}.additionalProperties", "Forbidden: not with properties", "FieldValueForbidden"
        )
    if schema.get("type") == "array" and "items" not in schema:
        yield Cause(f"{path}.items", "Required value: must be specified", "FieldValueRequired")
    for key, inner in schema.get("properties", {}).items():
        yield from _not_structural(inner, f"{path}.properties[{key}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _not_structural(schema[key], f"{path}.{key}")


def register(resources: Resources, crd: Json) -> None:
    """Serve the kind that a definition describes, in the versions that it serves."""
    spec = crd["spec"]
    names = spec["names"]
    resources.drop(spec["group"], names["plural"])
    stored = next(version["name"] for version in spec["versions"] if version["storage"])
    for version in spec["versions"]:
        if not version["served"]:
            continue
        subresources = version.get("subresources") or {}
        resources.add(
            Resource(
                spec["group"],
                version["name"],
                names["plural"],
                names["kind"],
                namespaced=spec["scope"] == "Namespaced",
                short_names=tuple(names.get("shortNames") or ()),
                subresources=tuple(subresources),
                columns=tuple(_columns(version)),
                categories=tuple(names.get("categories") or ()),
                singular=names.get("singular") or names["kind"].lower(),
                schema=version["schema"]["openAPIV3Schema"],
                scale=subresources.get("scale"),
                stored_version=stored,
            )
        )


def _columns(version: Json) -> Iterator[Column]:
    for column in version.get("additionalPrinterColumns") or []:
        yield Column(column["name"], column["jsonPath"], column["type"], column.get("priority", 0))


def accepted(crd: Json) -> Json:
    """The status of a definition that is served."""
    before = crd.get("status") or {}
    if before.get("conditions"):
        return before
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamp(),
        }
        for kind, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    stored = [version["name"] for version in crd["spec"]["versions"] if version["storage"]]
    return {
        "conditions": conditions,
        "acceptedNames": crd["spec"]["names"],
        "storedVersions": stored,
    }
