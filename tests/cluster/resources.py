"""The kinds that the API server knows: the built-in ones, and those that a CRD adds at run time."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.cluster.objects import Json


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; `path` is dotted, or a JSONPath for CRDs."""

    name: str
    path: str
    kind: str = "string"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind in one version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    categories: tuple[str, ...] = ()
    singular: str = ""
    schema: Json | None = None
    # Where the scale of a CRD is kept: specReplicasPath, statusReplicasPath, labelSelectorPath
    scale: Json | None = None
    # The version that objects are stored in, where there are several
    stored_version: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_custom(self) -> bool:
        return self.schema is not None


@dataclass
class Resources:
    """What is served now, by group, version and plural."""

    known: dict[tuple[str, str, str], Resource] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self.known.values()))

    def add(self, resource: Resource) -> None:
        self.known[resource.group, resource.version, resource.plural] = resource

    def drop(self, group: str, plural: str) -> None:
        for key in [key for key in self.known if key[0] == group and key[2] == plural]:
            del self.known[key]

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self.known.get((group, version, plural))

    def by_plural(self, plural: str, group: str | None = None) -> Resource:
        """The kind with this plural, for code in the cluster that knows that it exists."""
        return next(r for r in self if r.plural == plural and (group is None or r.group == group))

    def by_kind(self, api_version: str, kind: str) -> Resource | None:
        return next((r for r in self if (r.api_version, r.kind) == (api_version, kind)), None)

    def groups(self) -> dict[str, list[str]]:
        """The versions of each group, in the order in which they came."""
        found: dict[str, list[str]] = {}
        for resource in self:
            versions = found.setdefault(resource.group, [])
            if resource.version not in versions:
                versions.append(resource.version)
        return found


_STATUS = ("status",)
_SCALED = ("status", "scale")
_READY_OF = (Column("Ready", "status.readyReplicas", "integer"),)
_RBAC = "rbac.authorization.k8s.io"

BUILT_IN = (
    Resource(
        "",
        "v1",
        "namespaces",
        "Namespace",
        namespaced=False,
        short_names=("ns",),
        subresources=_STATUS,
        columns=(Column("Status", "status.phase"),),
    ),
    Resource(
        "",
        "v1",
        "nodes",
        "Node",
        namespaced=False,
        short_names=("no",),
        subresources=_STATUS,
        columns=(Column("Unschedulable", "spec.unschedulable", "boolean"),),
    ),
    Resource(
        "",
        "v1",
        "pods",
        "Pod",
        short_names=("po",),
        categories=("all",),
        subresources=("status", "log", "eviction"),
        columns=(
            Column("Status", "status.phase"),
            Column("IP", "status.podIP", priority=1),
            Column("Node", "spec.nodeName", priority=1),
        ),
    ),
    Resource(
        "",
        "v1",
        "services",
        "Service",
        short_names=("svc",),
        categories=("all",),
        subresources=_STATUS,
        columns=(Column("Type", "spec.type"), Column("Cluster-IP", "spec.clusterIP")),
    ),
    Resource("", "v1", "endpoints", "Endpoints", short_names=("ep",)),
    Resource("", "v1", "secrets", "Secret", columns=(Column("Type", "type"),)),
    Resource("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    Resource(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        short_names=("pvc",),
        subresources=_STATUS,
        columns=(Column("Status", "status.phase"),),
    ),
    Resource(
        "",
        "v1",
        "events",
        "Event",
        short_names=("ev",),
        columns=(
            Column("Type", "type"),
            Column("Reason", "reason"),
            Column("Object", "involvedObject.name"),
            Column("Message", "message"),
        ),
    ),
    Resource(
        "apps",
        "v1",
        "statefulsets",
        "StatefulSet",
        short_names=("sts",),
        categories=("all",),
        subresources=_SCALED,
        columns=_READY_OF,
    ),
    Resource(
        "apps",
        "v1",
        "daemonsets",
        "DaemonSet",
        short_names=("ds",),
        categories=("all",),
        subresources=_STATUS,
        columns=(Column("Ready", "status.numberReady", "integer"),),
    ),
    Resource(
        "apps",
        "v1",
        "deployments",
        "Deployment",
        short_names=("deploy",),
        categories=("all",),
        subresources=_SCALED,
        columns=_READY_OF,
    ),
    Resource(
        "apps",
        "v1",
        "replicasets",
        "ReplicaSet",
        short_names=("rs",),
        categories=("all",),
        subresources=_SCALED,
        columns=_READY_OF,
    ),
    Resource(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        short_names=("pdb",),
        subresources=_STATUS,
    ),
    Resource(
        "networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short_names=("netpol",)
    ),
    Resource(
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        "PriorityClass",
        namespaced=False,
        short_names=("pc",),
    ),
    Resource(
        "coordination.k8s.io",
        "v1",
        "leases",
        "Lease",
        columns=(Column("Holder", "spec.holderIdentity"),),
    ),
    Resource(_RBAC, "v1", "roles", "Role"),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Resource(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short_names=("crd", "crds"),
        subresources=_STATUS,
    ),
)
