"""What the API server refuses: bad names, unknown fields, changes to what is fixed."""

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import referencing

from tests.cluster import customs
from tests.cluster.objects import Json, dig
from tests.cluster.refusals import Cause
from tests.cluster.resources import Resource

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_ROLES = re.compile(r"[^/%]+")
_SCHEMAS = "kubernetes-json-schema/v1.33.0-local-strict"


def name_faults(resource: Resource, name: str) -> Iterator[Cause]:
    """Why a name is none: pods and sets are DNS subdomains, Services and namespaces labels."""
    if resource.group == "rbac.authorization.k8s.io":
        pattern, limit = _ROLES, 253
    elif resource.plural == "services":
        pattern, limit = _SERVICE, 63
    elif resource.plural in ("namespaces", "statefulsets"):
        pattern, limit = _LABEL, 63
    else:
        pattern, limit = _SUBDOMAIN, 253
    if len(name) > limit or not pattern.fullmatch(name):
        why = f"must match {pattern.pattern} and be no more than {limit} characters"
        yield Cause("metadata.name", f'Invalid value: "{name}": {why}')


def metadata_faults(metadata: Json, path: str = "metadata") -> Iterator[Cause]:
    """Labels, annotations and finalizers that are too long or not well formed."""
    for key, value in (metadata.get("labels") or {}).items():
        yield from _key_faults(key, f"{path}.labels")
        if len(value) > 63:
            yield Cause(
                f"{path}.labels", f'Invalid value: "{value}": must be no more than 63 characters'
            )
        elif value and not _QUALIFIED.fullmatch(value):
            yield Cause(
                f"{path}.labels",
                f'Invalid value: "{value}": a valid label must start '
                "and end with an alphanumeric character",
            )
    for key in metadata.get("annotations") or {}:
        yield from _key_faults(key, f"{path}.annotations")
    for finalizer in metadata.get("finalizers") or []:
        if "/" not in finalizer and finalizer not in ("foregroundDeletion", "orphan"):
            yield Cause(
                f"{path}.finalizers",
                f'Invalid value: "{finalizer}": name is neither a '
                "standard finalizer name nor is it fully qualified",
            )
        yield from _key_faults(finalizer, f"{path}.finalizers")
    if sum(ref.get("controller", False) for ref in metadata.get("ownerReferences") or []) > 1:
        yield Cause(f"{path}.ownerReferences", "Invalid value: only one may be the controller")


def _key_faults(key: str, path: str) -> Iterator[Cause]:
    prefix, _, name = key.rpartition("/")
    is_prefix = len(prefix) <= 253 and (not prefix or _SUBDOMAIN.fullmatch(prefix))
    if len(name) > 63 or not _QUALIFIED.fullmatch(name) or not is_prefix:
        yield Cause(
            path,
            f'Invalid value: "{key}": name part must consist of alphanumeric '
            "characters, '-', '_' or '.' and be no more than 63 characters",
        )


@functools.cache
def _definitions() -> referencing.Resource[Any]:
    return referencing.Resource.from_contents(_read("_definitions.json"))


def _read(name: str) -> Any:
    folder = importlib.resources.files("kubernetes_validate").joinpath(_SCHEMAS)
    return json.loads(folder.joinpath(name).read_text())


@functools.cache
def _validator(kind: str, api_version: str) -> jsonschema.protocols.Validator:
    group, _, version = api_version.rpartition("/")
    short = "-".join(filter(None, [group.partition(".")[0], version]))
    registry = _definitions() @ referencing.Registry[Any]()
    return jsonschema.Draft202012Validator(_read(f"{kind.lower()}-{short}.json"), registry=registry)


def built_in_faults(thing: Json) -> Iterator[Cause]:
    """What the schema of Kubernetes itself says about an object of a built-in kind.

    A field that it does not know is refused here in each case; an API server drops it with a
    warning unless it is asked to be strict, and a misspelt field of a child would pass.
    """
    bare, is_whole = {key: value for key, value in thing.items() if key != "status"}, True
    for error in _validator(thing["kind"], thing["apiVersion"]).iter_errors(bare):
        path = ".".join(str(part) for part in error.absolute_path)
        yield Cause(path, f"Invalid value: {error.message}")
        is_whole = False
    if is_whole and thing["kind"] == "CustomResourceDefinition":
        yield from customs.faults_of(thing)
    elif is_whole:
        yield from _meaning_faults(thing)


def _meaning_faults(thing: Json) -> Iterator[Cause]:
    """Rules between fields, which a schema cannot say."""
    spec = thing.get("spec") or {}
    if thing["kind"] in ("StatefulSet", "DaemonSet", "Deployment", "ReplicaSet"):
        wanted = (spec.get("selector") or {}).get("matchLabels") or {}
        have = dig(spec, "template.metadata.labels") or {}
        if not wanted.items() <= have.items():
            yield Cause(
                "spec.template.metadata.labels",
                f"Invalid value: {have}: `selector` does not match template `labels`",
            )
        yield from metadata_faults(spec["template"].get("metadata") or {}, "spec.template.metadata")
        yield from _pod_faults(
            spec["template"]["spec"],
            "spec.template.spec",
            {c["metadata"]["name"] for c in spec.get("volumeClaimTemplates") or []},
        )
    elif thing["kind"] == "Pod":
        yield from _pod_faults(spec, "spec", set())
    elif thing["kind"] == "Service" and len(spec.get("ports") or []) > 1:
        for index, port in enumerate(spec["ports"]):
            if not port.get("name"):
                yield Cause(f"spec.ports[{index}].name", "Required value", "FieldValueRequired")


def _pod_faults(spec: Json, path: str, volumes: set[str]) -> Iterator[Cause]:
    names = [volume["name"] for volume in spec.get("volumes") or []]
    known = volumes | set(names)
    yield from _duplicates(names, f"{path}.volumes")
    for group in ("initContainers", "containers"):
        containers = spec.get(group) or []
        yield from _duplicates([c["name"] for c in containers], f"{path}.{group}")
        for index, container in enumerate(containers):
            where = f"{path}.{group}[{index}]"
            if not container.get("image"):
                yield Cause(f"{where}.image", "Required value", "FieldValueRequired")
            mounts = container.get("volumeMounts") or []
            yield from _duplicates([m["mountPath"] for m in mounts], f"{where}.volumeMounts")
            for mount in mounts:
                if mount["name"] not in known:
                    yield Cause(
                        f"{where}.volumeMounts.name",
                        f'Not found: "{mount["name"]}"',
                        "FieldValueNotFound",
                    )
    if not spec.get("containers"):
        yield Cause(f"{path}.containers", "Required value", "FieldValueRequired")


def _duplicates(names: list[str], path: str) -> Iterator[Cause]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Cause(path, f'Duplicate value: "{name}"', "FieldValueDuplicate")


# What is fixed for good once it is there
_FIXED = {
    "DaemonSet": ("selector",),
    "Deployment": ("selector",),
    "ReplicaSet": ("selector",),
    "Service": ("clusterIP",),
}
# A StatefulSet names what may change instead.
_STATEFUL_SET_MAY_CHANGE = {
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
}
_POD_MAY_CHANGE = {
    "activeDeadlineSeconds",
    "terminationGracePeriodSeconds",
    "tolerations",
    "nodeName",
}


def immutable_faults(thing: Json, before: Json) -> Iterator[Cause]:
    """What an update changes that must stay."""
    kind, new, old = thing["kind"], thing.get("spec") or {}, before.get("spec") or {}
    if kind == "StatefulSet":
        if any(new.get(k) != old.get(k) for k in (new.keys() | old) - _STATEFUL_SET_MAY_CHANGE):
            listed = "', '".join(sorted(_STATEFUL_SET_MAY_CHANGE))
            yield Cause(
                "spec",
                "Forbidden: updates to statefulset spec for fields other than "
                f"'{listed}' are forbidden",
                "FieldValueForbidden",
            )
    elif kind == "Pod":
        yield from _pod_changes(new, old)
    elif before.get("immutable") and thing.get("data") != before.get("data"):
        message = "Forbidden: field is immutable when `immutable` is set"
        yield Cause("data", message, "FieldValueForbidden")
    elif "roleRef" in before and thing["roleRef"] != before["roleRef"]:
        yield Cause("roleRef", f"Invalid value: {thing['roleRef']}: cannot change roleRef")
    for field in _FIXED.get(kind, ()):
        if new.get(field) != old.get(field) and old.get(field) is not None:
            yield Cause(f"spec.{field}", f"Invalid value: {new.get(field)}: field is immutable")


def _pod_changes(new: Json, old: Json) -> Iterator[Cause]:
    def bare(spec: Json) -> Json:
        kept = {key: value for key, value in spec.items() if key not in _POD_MAY_CHANGE}
        for group in ("containers", "initContainers"):
            if group in kept:
                kept[group] = [{**c, "image": None} for c in kept[group]]
        return kept

    if bare(new) != bare(old):
        yield Cause(
            "spec",
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`",
            "FieldValueForbidden",
        )
