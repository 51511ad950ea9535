"""One pod template: what the operator needs, merged into what the user gave."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from uncurtail.operator import names
from uncurtail.operator.fields import Manifest
from uncurtail.operator.hardening import Security, container_context, pod_context


@dataclass(frozen=True, slots=True)
class Pod:
    """What every pod of a workload needs."""

    labels: Mapping[str, str]
    containers: tuple[Manifest, ...]
    volumes: tuple[Manifest, ...]
    service_account: str
    security: Security
    owns_volumes: bool = False  # of claims, which Flower's user must be able to write
    grace_s: int | None = None
    runtime_class: str | None = None


def pod_template(given: Manifest | None, pod: Pod) -> Manifest:
    """The user's template with our containers, labels and volumes; what it says of a pod stands."""
    given = given or {}
    meta: Manifest = given.get("metadata") or {}
    spec: Manifest = dict(given.get("spec") or {})
    theirs = {c["name"]: c for c in spec.pop("containers", None) or [] if "name" in c}
    defaults: Manifest = {"automountServiceAccountToken": False}
    if "serviceAccountName" not in spec and "serviceAccount" not in spec:
        defaults["serviceAccountName"] = pod.service_account
    if pod.grace_s is not None:
        defaults["terminationGracePeriodSeconds"] = pod.grace_s
    if pod.runtime_class is not None:
        defaults["runtimeClassName"] = pod.runtime_class
    spec = defaults | spec
    ours = pod_context(pod.security, owns_volumes=pod.owns_volumes)
    spec["securityContext"] = ours | (spec.get("securityContext") or {})
    spec["containers"] = [
        _hardened(merge_container(theirs.get(c["name"], {}), c), pod.security)
        for c in pod.containers
    ]
    volumes = by_key("name", spec.get("volumes") or [], pod.volumes, _writable(pod.security))
    if volumes:
        spec["volumes"] = volumes
    merged: Manifest = {"metadata": {"labels": {**(meta.get("labels") or {}), **pod.labels}}}
    if meta.get("annotations"):
        merged["metadata"]["annotations"] = dict(meta["annotations"])
    return merged | {"spec": spec}


def merge_container(theirs: Manifest, ours: Manifest) -> Manifest:
    """Our container, with what the user's of the same name adds or sets otherwise.

    Name, image and arguments are ours. Lists are joined by what makes their items one: a volume
    may be mounted at two paths. In `env` and `ports`, the user's word counts.
    """
    merged = ours | {k: v for k, v in theirs.items() if k not in ("name", "image", "args")}
    for field, key in (("env", "name"), ("ports", "name"), ("volumeMounts", "mountPath")):
        items = by_key(key, ours.get(field) or [], theirs.get(field) or [])
        if items:
            merged[field] = items
    if "resources" in ours and "resources" in theirs:
        merged["resources"] = merge_resources(theirs["resources"], ours["resources"])
    return merged


def merge_resources(*each: Manifest | None) -> Manifest:
    """Limits and requests together; later ones win by resource."""
    merged: Manifest = {}
    for resources in each:
        for field, value in (resources or {}).items():
            both = isinstance(value, dict)
            merged[field] = {**merged.get(field, {}), **value} if both else value
    return merged


def by_key(key: str, *lists: Iterable[Manifest]) -> list[Manifest]:
    """Lists joined in order; an item of a later one takes the place of the same one before."""
    joined: dict[str, Manifest] = {}
    for items in lists:
        for item in items:
            joined[str(item.get(key, id(item)))] = item
    return list(joined.values())


def _hardened(container: Manifest, security: Security) -> Manifest:
    given: Manifest = container.get("securityContext") or {}
    context = container_context(security, privileged=bool(given.get("privileged")))
    if security == "restricted":
        home = {"name": "FLWR_HOME", "value": names.HOME_DIR}
        mounts = [
            {"name": "flower-home", "mountPath": names.HOME_DIR},
            {"name": "flower-tmp", "mountPath": "/tmp"},
        ]
        container = container | {
            "env": by_key("name", [home], container.get("env") or []),
            "volumeMounts": by_key("mountPath", mounts, container.get("volumeMounts") or []),
        }
    return container | {"securityContext": context | given}


def _writable(security: Security) -> list[Manifest]:
    if security == "baseline":
        return []
    return [{"name": "flower-home", "emptyDir": {}}, {"name": "flower-tmp", "emptyDir": {}}]
