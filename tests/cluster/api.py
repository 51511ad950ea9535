"""Reading and writing objects as an API server does it: versions, generations, finalizers."""

import copy
import itertools
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.cluster import admission, customs, defaulting, ownership, rules, structural
from tests.cluster.objects import Json, Key, finalizers_of, is_ending, timestamp
from tests.cluster.ownership import Manager
from tests.cluster.refusals import (
    ApiError,
    Cause,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    modified,
    not_found,
)
from tests.cluster.resources import BUILT_IN, Resource, Resources
from tests.cluster.store import Store

# What a write may not change, whatever it says
_KEPT = (
    "uid",
    "name",
    "namespace",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
    "managedFields",
)
# Kinds in which each write counts as a new generation only if the spec changes
_WITHOUT_GENERATION = {
    "Secret",
    "ConfigMap",
    "ServiceAccount",
    "Event",
    "Endpoints",
    "Lease",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "Namespace",
    "Node",
    "Service",
    "PersistentVolumeClaim",
}
_CONTROLLER = Manager("kube-controller-manager", "Update")


@dataclass(frozen=True, slots=True)
class Deletion:
    """How an object is to go."""

    policy: str = "Background"
    grace_s: int | None = None
    uid: str | None = None
    resource_version: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Who writes, which part, whether for good, and whether unknown fields are an error."""

    manager: Manager = _CONTROLLER
    is_dry: bool = False
    is_strict: bool = False

    @property
    def subresource(self) -> str:
        return self.manager.subresource


WRITE = Write()
STATUS = Write(Manager("kube-controller-manager", "Update", "status"))


@dataclass
class Api:
    """The objects of a cluster, and the rules by which they change."""

    store: Store = field(default_factory=Store)
    resources: Resources = field(default_factory=Resources)
    # where clusters usually have their Services
    service_addresses: Iterator[str] = field(
        default_factory=lambda: (f"10.96.{n // 250}.{n % 250 + 2}" for n in itertools.count())
    )
    node_ports: Iterator[int] = field(default_factory=lambda: itertools.count(30000))

    def __post_init__(self) -> None:
        for resource in BUILT_IN:
            self.resources.add(resource)
        for _, crd in self.store.select("apiextensions.k8s.io", "customresourcedefinitions"):
            customs.register(self.resources, crd)
        namespaces = self.resources.by_plural("namespaces")
        for name in ("default", "kube-system"):
            if self.store.get(self.key(namespaces, "", name)) is None:
                self.create(namespaces, "", {"metadata": {"name": name}})

    def key(self, resource: Resource, namespace: str, name: str) -> Key:
        where = namespace if resource.namespaced else ""
        return Key(resource.group, resource.plural, where, name)

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        found = self.store.get(self.key(resource, namespace, name))
        if found is None:
            raise not_found(resource, name)
        return seen_as(resource, found)

    def list(self, plural: str, namespace: str = "", group: str | None = None) -> list[Json]:
        """All objects of a kind, for code inside of the cluster."""
        resource = self.resources.by_plural(plural, group)
        return [thing for _, thing in self.store.select(resource.group, plural, namespace)]

    def create(self, resource: Resource, namespace: str, sent: Json, write: Write = WRITE) -> Json:
        thing = copy.deepcopy(sent)
        metadata = thing.setdefault("metadata", {})
        thing.setdefault("kind", resource.kind)
        thing.setdefault("apiVersion", resource.api_version)
        self._check_address(resource, namespace, thing)
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                cause = Cause(
                    "metadata.name",
                    "Required value: name or generateName is required",
                    "FieldValueRequired",
                )
                raise invalid(resource, "", [cause])
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        key = self.key(resource, namespace, metadata["name"])
        if self.store.get(key) is not None:
            raise already_exists(resource, key.name)
        if "status" in resource.subresources:
            thing.pop("status", None)
        managers = metadata.get("managedFields")
        for name in ("resourceVersion", "deletionTimestamp", "selfLink", "managedFields"):
            metadata.pop(name, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp()
        if resource.kind not in _WITHOUT_GENERATION:
            metadata["generation"] = 1
        self._prepare(resource, thing, None, write)
        if write.manager.operation == "Apply":
            metadata["managedFields"] = managers
        else:
            thing = ownership.written(thing, None, write.manager, resource.schema)
        return thing if write.is_dry else self._stored(resource, key, thing)

    def _check_address(self, resource: Resource, namespace: str, thing: Json) -> None:
        if (thing["apiVersion"], thing["kind"]) != (resource.api_version, resource.kind):
            raise bad_request(
                f"{thing['apiVersion']} {thing['kind']} does not match the expected "
                f"{resource.api_version} {resource.kind}"
            )
        metadata = thing["metadata"]
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return
        if metadata.setdefault("namespace", namespace) != namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace "
                f"sent on the request: {metadata['namespace']}, {namespace}"
            )
        home = self.get(self.resources.by_plural("namespaces"), "", namespace)
        if is_ending(home):
            name = metadata.get("name", "")
            raise forbidden(
                f'{resource.qualified} "{name}" is forbidden: unable to create new '
                f"content in namespace {namespace} because it is being terminated",
                resource,
                name,
            )

    def _prepare(self, resource: Resource, thing: Json, before: Json | None, write: Write) -> None:
        """Defaults, pruning and everything that can refuse an object."""
        metadata, name = thing["metadata"], thing["metadata"]["name"]
        causes = list(admission.metadata_faults(metadata))
        if before is None:
            causes += admission.name_faults(resource, name)
        if resource.schema is not None:
            unknown = structural.prune(resource.schema, thing)
            if unknown and write.is_strict:
                told = ", ".join(f'unknown field "{path}"' for path in unknown)
                raise bad_request(
                    f'{resource.kind} in version "{resource.version}" cannot be '
                    f"handled as a {resource.kind}: strict decoding error: {told}"
                )
            structural.fill_defaults(resource.schema, thing)
            causes += structural.validate(resource.schema, thing)
            if not causes:
                causes += rules.check(resource.schema, thing, before)
        else:
            causes += admission.built_in_faults(thing)
        if causes:
            raise invalid(resource, name, causes)
        if resource.schema is None:
            self._complete(thing, before)
            faults = list(admission.immutable_faults(thing, before)) if before else []
            if faults:
                raise invalid(resource, name, faults)

    def _complete(self, thing: Json, before: Json | None) -> None:
        defaulting.fill(thing["kind"], thing)
        if before:
            defaulting.keep_identity(thing, before)
        spec = thing.get("spec") or {}
        if thing["kind"] == "Service" and spec.get("type") != "ExternalName":
            if not spec.get("clusterIP"):
                spec["clusterIP"] = next(self.service_addresses)
            spec["clusterIPs"] = [spec["clusterIP"]]
            if spec["type"] in ("NodePort", "LoadBalancer"):
                for port in spec.get("ports") or []:
                    port.setdefault("nodePort", next(self.node_ports))
        if thing["kind"] == "CustomResourceDefinition":
            names = spec["names"]
            names.setdefault("singular", names["kind"].lower())
            names.setdefault("listKind", f"{names['kind']}List")
            spec.setdefault("conversion", {"strategy": "None"})
            thing["status"] = customs.accepted(thing)

    def _stored(self, resource: Resource, key: Key, thing: Json) -> Json:
        if resource.stored_version and resource.version != resource.stored_version:
            thing = {**thing, "apiVersion": f"{resource.group}/{resource.stored_version}"}
        stored = self.store.put(key, thing)
        if resource.kind == "CustomResourceDefinition":
            customs.register(self.resources, stored)
        return seen_as(resource, stored)

    def update(self, resource: Resource, sent: Json, write: Write = WRITE) -> Json:
        """Replace an object, or its status.

        Raises:
            ApiError: 404 where there is none, 409 where its version is another, 422 where it is
                not valid.
        """
        metadata = sent["metadata"]
        key = self.key(resource, metadata.get("namespace", ""), metadata["name"])
        before = self.get(resource, key.namespace, key.name)
        old = before["metadata"]
        if metadata.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise modified(resource, key.name)
        if metadata.get("uid") not in (None, "", old["uid"]):
            raise conflict(
                resource,
                key.name,
                f"Precondition failed: UID in precondition: "
                f"{metadata['uid']}, UID in object meta: {old['uid']}",
            )
        thing = self._restricted(resource, copy.deepcopy(sent), before, write.subresource)
        fresh = set(finalizers_of(thing)) - set(finalizers_of(before))
        if is_ending(before) and fresh - {"foregroundDeletion", "orphan"}:
            cause = Cause(
                "metadata.finalizers",
                "Forbidden: no new finalizers can be added if the "
                f"object is being deleted, found new finalizers {sorted(fresh)}",
                "FieldValueForbidden",
            )
            raise invalid(resource, key.name, [cause])
        self._prepare(resource, thing, before, write)
        if write.manager.operation != "Apply":
            thing = ownership.written(thing, before, write.manager, resource.schema)
        if "generation" in old and _asked(thing) != _asked(before):
            thing["metadata"]["generation"] = old["generation"] + 1
        thing["metadata"]["resourceVersion"] = old["resourceVersion"]
        if write.is_dry or thing == before:
            return thing
        stored = self._stored(resource, key, thing)
        grace_s = stored["metadata"].get("deletionGracePeriodSeconds") or 0
        if is_ending(stored) and not finalizers_of(stored) and not grace_s:
            self._remove(resource, key)
        return stored

    def _restricted(self, resource: Resource, thing: Json, before: Json, part: str) -> Json:
        """Only what this write may change: the status, or everything but it."""
        if part == "status":
            thing = {
                **copy.deepcopy(before),
                **({"status": thing["status"]} if "status" in thing else {}),
            }
        elif "status" in resource.subresources:
            thing.pop("status", None)
            if "status" in before:
                thing["status"] = copy.deepcopy(before["status"])
        thing["apiVersion"], thing["kind"] = resource.api_version, resource.kind
        managed = thing["metadata"].get("managedFields")
        for name in _KEPT:
            thing["metadata"].pop(name, None)
            if name in before["metadata"]:
                thing["metadata"][name] = copy.deepcopy(before["metadata"][name])
        if managed is not None:
            thing["metadata"]["managedFields"] = managed
        return thing

    def change(self, thing: Json, change: Callable[[Json], None], write: Write = WRITE) -> Json:
        """Read an object anew, change it and write it: how the cluster's own controllers write."""
        resource = self.resource_of(thing)
        metadata = thing["metadata"]
        fresh = copy.deepcopy(self.get(resource, metadata.get("namespace", ""), metadata["name"]))
        change(fresh)
        return self.update(resource, fresh, write)

    def resource_of(self, thing: Json) -> Resource:
        found = self.resources.by_kind(thing["apiVersion"], thing["kind"])
        if found is None:
            raise ApiError(404, "NotFound", f"no kind {thing['apiVersion']} {thing['kind']}")
        return found

    def delete(
        self, resource: Resource, namespace: str, name: str, how: Deletion | None = None
    ) -> Json:
        """Let an object go: at once, or when its finalizers, its node or its dependents let it."""
        how = how or Deletion()
        key = self.key(resource, namespace, name)
        thing = copy.deepcopy(self.get(resource, namespace, name))
        metadata = thing["metadata"]
        for wanted, have in ((how.uid, "uid"), (how.resource_version, "resourceVersion")):
            if wanted and wanted != metadata[have]:
                raise conflict(
                    resource,
                    name,
                    f"Precondition failed: {have} in precondition: "
                    f"{wanted}, in object meta: {metadata[have]}",
                )
        grace_s = self._grace_s(resource, thing, how)
        finalizers = [f for f in finalizers_of(thing) if f not in ("foregroundDeletion", "orphan")]
        finalizers += {"Foreground": ["foregroundDeletion"], "Orphan": ["orphan"]}.get(
            how.policy, []
        )
        stays = grace_s or finalizers or resource.kind == "Namespace"
        if not stays:
            return self._remove(resource, key)
        metadata["finalizers"] = finalizers
        if not finalizers:
            metadata.pop("finalizers")
        if not is_ending(thing):
            until = datetime.now(UTC) + timedelta(seconds=grace_s)
            metadata["deletionTimestamp"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
            if "generation" in metadata:
                metadata["generation"] += 1
        metadata["deletionGracePeriodSeconds"] = grace_s
        if resource.kind == "Namespace":
            thing["status"] = {"phase": "Terminating"}
        return self._stored(resource, key, thing)

    def _grace_s(self, resource: Resource, thing: Json, how: Deletion) -> int:
        """How long a pod may take; one that no node has, or that has ended, goes at once."""
        if resource.kind != "Pod" or not thing["spec"].get("nodeName"):
            return 0
        if thing.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        usual = int(thing["spec"].get("terminationGracePeriodSeconds", 30))
        wanted = usual if how.grace_s is None else how.grace_s
        before = thing["metadata"].get("deletionGracePeriodSeconds")
        return wanted if before is None else min(wanted, int(before))

    def _remove(self, resource: Resource, key: Key) -> Json:
        gone = self.store.remove(key)
        if resource.kind == "CustomResourceDefinition":
            spec = gone["spec"]
            for other, _ in list(self.store.select(spec["group"], spec["names"]["plural"])):
                self.store.remove(other)
            self.resources.drop(spec["group"], spec["names"]["plural"])
        return seen_as(resource, gone)

    def finish(self, resource: Resource, thing: Json) -> None:
        """Take away an object whose node, or whose content, has gone; not another of its name."""
        key = self.key(resource, thing["metadata"].get("namespace", ""), thing["metadata"]["name"])
        found = self.store.get(key)
        is_same = found is not None and found["metadata"]["uid"] == thing["metadata"]["uid"]
        if found is not None and is_same and not finalizers_of(found):
            self._remove(resource, key)


def seen_as(resource: Resource, thing: Json) -> Json:
    """An object in the version that was asked for; versions differ in nothing but their name."""
    if thing["apiVersion"] == resource.api_version:
        return thing
    return {**thing, "apiVersion": resource.api_version}


def _asked(thing: Json) -> Json:
    """What a generation counts: all that is not metadata or status."""
    return {key: value for key, value in thing.items() if key not in ("metadata", "status")}
