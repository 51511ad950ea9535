"""Names, labels and places that the operator's objects share."""

from collections.abc import Mapping

from uncurtail.operator.fields import Manifest
from uncurtail.operator.poolspec import Pool
from uncurtail.operator.spec import Federation

GROUP = "flwr.exalsius.ai"
API_VERSION = f"{GROUP}/v1"

# annotations
SPEC_HASH = f"{GROUP}/spec-hash"
FIXED_HASH = f"{GROUP}/fixed-hash"  # of the fields that the API server lets nobody change
DRAIN_REQUESTED_AT = f"{GROUP}/drain-requested-at"
DRAINED = f"{GROUP}/drained"

# labels, and the recommended ones beside them
MANAGER = "uncurtail-operator"
FEDERATION_LABEL = "flower.flwr.ai/federation"
COMPONENT_LABEL = "flower.flwr.ai/component"
POOL_LABEL = "flower.flwr.ai/pool"

# places in containers
TLS_DIR = "/etc/flower/tls"
AUTH_KEY = "/etc/flower/auth/key"
NODE_KEYS_DIR = "/etc/flower/supernode-keys"
SUPEREXEC_SECRET = "/etc/flower/superexec/secret"
PODINFO_DIR = "/etc/flower/podinfo"
STATE_DIR = "/var/lib/flower"
HOME_DIR = "/var/lib/flower-home"

HEALTH_PORT = 9095  # next to Flower's own
SUPEREXEC_HEALTH_PORT = 9096


def superlink_name(federation: Federation) -> str:
    """Of the SuperLink's StatefulSet, Service and the rest."""
    return f"{federation.name}-superlink"


def supernodes_name(federation: Federation, pool: Pool) -> str:
    """Of a pool's workload, Service, SuperNodePool and the rest."""
    return workload_name(federation, pool.name)


def workload_name(federation: Federation, pool: str) -> str:
    """The same for a pool that may not be in the spec any more."""
    return f"{federation.name}-supernode-{pool}"


def selector(federation: Federation, pool: Pool | None = None) -> dict[str, str]:
    """The labels that tell pods apart, and never change; of the SuperLink without a pool."""
    labels = {
        "app.kubernetes.io/instance": federation.name,
        "app.kubernetes.io/name": "superlink" if pool is None else "supernode",
    }
    return labels if pool is None else {**labels, POOL_LABEL: pool.name}


def labels(federation: Federation, pool: Pool | None = None) -> dict[str, str]:
    """All labels of an object of the SuperLink, or of a pool."""
    component = "superlink" if pool is None else f"pool-{pool.name}"
    return {
        **selector(federation, pool),
        # A label ends at 63 characters, and "pool-" may be 5 too many.
        "app.kubernetes.io/component": component[:63].rstrip("-"),
        "app.kubernetes.io/managed-by": MANAGER,
        FEDERATION_LABEL: federation.name,
        COMPONENT_LABEL: "superlink" if pool is None else "supernode",
    }


def metadata(
    federation: Federation,
    name: str,
    labelled: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Metadata of a child, which the garbage collector ends with its Federation."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": "Federation",
        "name": federation.name,
        "uid": federation.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    meta: Manifest = {
        "name": name,
        "namespace": federation.namespace,
        "labels": dict(labelled),
        "ownerReferences": [owner],
    }
    return meta | ({"annotations": dict(annotations)} if annotations else {})
