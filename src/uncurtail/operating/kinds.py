"""The kinds of objects that the operator watches and writes, and which of them are its own."""

from uncurtail.adapters.kubernetes_api import Kind
from uncurtail.operator.fields import Manifest
from uncurtail.operator.names import API_VERSION, FEDERATION_LABEL, MANAGER

Key = tuple[str, str]  # namespace and name of a Federation

FEDERATION = Kind("Federation", API_VERSION, "federations")
EVENT = Kind("Event", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
POD = Kind("Pod", "v1", "pods")
CHILDREN = (
    Kind("SuperNodePool", API_VERSION, "supernodepools"),
    Kind("StatefulSet", "apps/v1", "statefulsets"),
    Kind("DaemonSet", "apps/v1", "daemonsets"),
    Kind("Deployment", "apps/v1", "deployments"),
    Kind("Service", "v1", "services"),
    Kind("ServiceAccount", "v1", "serviceaccounts"),
    Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
)
KINDS = {kind.name: kind for kind in (FEDERATION, POD, *CHILDREN)}

# Ours, and those of the reference operator, whose Federations may come to us. The server selects:
# a cluster's other pods are never sent.
SELECTOR = f"app.kubernetes.io/managed-by in ({MANAGER},flower-operator)"


def federation_of(thing: Manifest) -> Key | None:
    """Which Federation an object belongs to, by its owner or by its labels."""
    meta = thing["metadata"]
    namespace = str(meta.get("namespace", ""))
    for owner in meta.get("ownerReferences") or []:
        if owner.get("kind") == FEDERATION.name and owner.get("controller"):
            return namespace, str(owner["name"])
    labels = meta.get("labels") or {}
    name = labels.get(FEDERATION_LABEL) or labels.get("app.kubernetes.io/instance")
    return None if name is None else (namespace, str(name))
