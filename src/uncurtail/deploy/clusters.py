"""What each cluster needs for the sites in it: who may start their pods, and pools for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uncurtail.adapters.gate_pass import END_WALL_S
from uncurtail.adapters.kubernetes_pool import secret_name
from uncurtail.config import Config
from uncurtail.core.clouds import KubernetesSite
from uncurtail.deploy.parts import Name
from uncurtail.operator.fields import Manifest
from uncurtail.operator.names import API_VERSION, GROUP
from uncurtail.provisioning import sites_of

RBAC = "rbac.authorization.k8s.io"
MARGIN_S = 10  # of a pod's end beyond its session's


@dataclass(frozen=True, slots=True)
class Placed:
    """One site, where it runs. No context: in the coordinator's own cluster."""

    site: str
    context: str | None
    namespace: str
    machine: KubernetesSite


def placed(config: Config, own_namespace: str) -> list[Placed]:
    """Every site of kind kubernetes; a namespace that nobody names is the one a client takes."""
    common = config.fleet.kubernetes
    found = []
    for site in sites_of(config, "kubernetes"):
        machine = config.sites[site].kubernetes
        context = machine.context or common.context
        taken = own_namespace if context is None else "default"
        namespace = machine.namespace or common.namespace or taken
        found.append(Placed(site, context, namespace, machine))
    return found


def namespaces(places: Sequence[Placed]) -> list[str]:
    """Those of these sites, in the order in which they are named."""
    return list(dict.fromkeys(place.namespace for place in places))


def namespace(name: str) -> list[Manifest]:
    """A namespace, without a label that would take it away with the run; there is one default."""
    if name == "default":
        return []
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}]


def access(name: Name, places: Sequence[Placed], account: Name) -> list[Manifest]:
    """What the coordinator may do in each of these sites' namespaces, as `account`."""
    made: list[Manifest] = []
    for where in namespaces(places):
        here = Name(name.of, where)
        role = {"apiGroup": RBAC, "kind": "Role", "name": name.of}
        subject = {"kind": "ServiceAccount", "name": account.of, "namespace": account.namespace}
        made += [
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "Role",
                "metadata": here.meta("coordinator"),
                "rules": _rules([place for place in places if place.namespace == where]),
            },
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "RoleBinding",
                "metadata": here.meta("coordinator"),
                "roleRef": role,
                "subjects": [subject],
            },
        ]
    return made


def account(name: Name) -> list[Manifest]:
    """The coordinator's account in a cluster that is not its own, with a token that it keeps."""
    token = name.meta("coordinator", f"{name.of}-token")
    token["annotations"] = {"kubernetes.io/service-account.name": name.of}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": name.meta("coordinator"),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": token,
            "type": "kubernetes.io/service-account-token",
        },
    ]


def federations(name: Name, places: Sequence[Placed], image: str, save_s: float) -> list[Manifest]:
    """The Federations whose pools are sites, with nobody in them until the run wants somebody.

    Args:
        name: What the deployment is called.
        places: Sites of one cluster.
        image: Of the pools' pods.
        save_s: What a site may take to write its snapshot.
    """
    keys = {(place.namespace, place.machine.federation) for place in places}
    return [
        _federation(
            Name(name.of, where),
            [p for p in places if (p.namespace, p.machine.federation) == (where, federation)],
            image,
            math.ceil(save_s + END_WALL_S) + MARGIN_S,
        )
        for where, federation in sorted((w, f) for w, f in keys if f is not None)
    ]


def _rules(places: Sequence[Placed]) -> list[Manifest]:
    """As little as its adapter asks for: Secrets are written and never read."""
    pools = any(place.machine.federation is not None for place in places)
    rules: list[Manifest] = []
    if pools:
        rules += [
            {"apiGroups": [GROUP], "resources": ["supernodepools"], "verbs": ["get", "patch"]},
            {"apiGroups": [GROUP], "resources": ["supernodepools/scale"], "verbs": ["patch"]},
        ]
    own_pods = any(place.machine.image is not None for place in places)
    pods = ["get", "list", "patch", *(["create", "delete"] if own_pods else [])]
    # The Secret of a pod goes with it.
    secrets = ["create", "patch", *(["delete"] if pools else [])]
    return [
        *rules,
        {"apiGroups": [""], "resources": ["pods"], "verbs": pods},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": secrets},
    ]


def _federation(name: Name, places: Sequence[Placed], image: str, end_s: int) -> Manifest:
    federation = places[0].machine.federation
    assert federation is not None
    idle = {"name": "superlink", "command": ["/bin/sh", "-c", "exec sleep infinity"]}
    restricted = any(place.machine.pod_security == "restricted" for place in places)
    return {
        "apiVersion": API_VERSION,
        "kind": "Federation",
        "metadata": name.meta("sites", federation),
        "spec": {
            "mode": "StatefulSet",
            "isolationMode": "subprocess",
            "version": "1.41",
            **({"podSecurity": "restricted"} if restricted else {}),
            # Its pods are no SuperNodes of its own SuperLink: they join the run through its gate.
            "probes": {"enabled": False},
            "superlink": {"image": image, "podTemplate": {"spec": {"containers": [idle]}}},
            # The run says when a site is drained; this is for one that it cannot speak of any more.
            "drain": {"timeoutSeconds": end_s + 30, "terminationGracePeriodSeconds": end_s},
            "supernodes": {
                "image": image,
                "pools": [_pool(federation, p, restricted) for p in places],
            },
        },
    }


def _pool(federation: str, place: Placed, restricted: bool) -> Manifest:
    pool = place.machine.pool
    told = {"secretRef": {"name": secret_name(f"{federation}-supernode-{pool}")}}
    container: Manifest = {
        "name": "supernode",
        # The operator's arguments follow, and the shell takes no notice of them. --stay: a session
        # that is over leaves its pod to be taken away.
        "command": ["/bin/sh", "-c", "exec uncurtail site join --stay", "sh"],
        "envFrom": [told],
    }
    if restricted:
        # The operator gives it no more to write to than /tmp and Flower's home.
        container["env"] = [{"name": "HOME", "value": "/tmp"}]
    made: Manifest = {
        "name": pool,
        "replicas": 0,
        "podTemplate": {"spec": {"containers": [container]}},
    }
    if place.machine.gpus:
        made["gpu"] = {
            "enabled": True,
            "resourceName": place.machine.gpu_resource,
            "count": place.machine.gpus,
        }
    return made
