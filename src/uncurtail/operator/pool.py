"""A pool's objects: its workload, the Service that names its pods, and its scale."""

from uncurtail.operator import names, parts
from uncurtail.operator.dialects import Dialect, ExecFlags, NodeFlags
from uncurtail.operator.fields import Manifest
from uncurtail.operator.gpus import Gpus, gpus_of
from uncurtail.operator.nodeconfig import node_config, uses
from uncurtail.operator.pods import Pod, by_key, merge_resources, pod_template
from uncurtail.operator.poolspec import Pool
from uncurtail.operator.spec import Federation

_PODINFO = {
    "name": "flower-podinfo",
    "downwardAPI": {
        "items": [{"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}]
    },
}
_PODINFO_MOUNT = {"name": "flower-podinfo", "mountPath": names.PODINFO_DIR, "readOnly": True}


def workload(federation: Federation, pool: Pool, dialect: Dialect) -> Manifest:
    """The DaemonSet or StatefulSet of a pool."""
    name = names.supernodes_name(federation, pool)
    selector = {"matchLabels": names.selector(federation, pool)}
    spec: Manifest = {
        "revisionHistoryLimit": 3,
        "selector": selector,
        "template": _template(federation, pool, dialect),
    }
    if federation.spec.mode == "StatefulSet":
        spec |= {
            "replicas": pool.replicas or 0,
            "serviceName": name,
            # SuperNodes do not wait for each other.
            "podManagementPolicy": "Parallel",
            "volumeClaimTemplates": parts.claims(pool),
            **parts.retention(pool.persistent_volume_claim_retention_policy),
        }
    return {
        "apiVersion": "apps/v1",
        "kind": federation.spec.mode,
        "metadata": names.metadata(federation, name, names.labels(federation, pool)),
        "spec": spec,
    }


def headless_service(federation: Federation, pool: Pool) -> Manifest:
    """The Service that gives the pods of a StatefulSet their DNS names."""
    name = names.supernodes_name(federation, pool)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(federation, name, names.labels(federation, pool)),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(federation, pool),
        },
    }


def scale(federation: Federation, pool: Pool) -> Manifest:
    """The SuperNodePool, whose scale subresource others may set."""
    name = names.supernodes_name(federation, pool)
    return {
        "apiVersion": names.API_VERSION,
        "kind": "SuperNodePool",
        "metadata": names.metadata(federation, name, names.labels(federation, pool)),
        "spec": {
            "federation": federation.name,
            "pool": pool.name,
            "replicas": pool.replicas or 0,
            "federationReplicas": pool.replicas or 0,
        },
    }


def _template(federation: Federation, pool: Pool, dialect: Dialect) -> Manifest:
    spec = federation.spec
    gpus = gpus_of(pool.gpu)
    containers = [_supernode(federation, pool, dialect, gpus)]
    if spec.isolation_mode == "process":
        containers.append(_superexec(federation, pool, dialect, gpus))
    ours = [_PODINFO, *parts.secret_volumes(spec, "supernode"), *gpus.volumes]
    if pool.auth is not None:
        ours.append({"name": "flower-auth", "secret": {"secretName": pool.auth.secret_name}})
    pod = Pod(
        labels=names.labels(federation, pool),
        containers=tuple(containers),
        volumes=tuple(by_key("name", ours, pool.volumes)),
        service_account=f"{federation.name}-supernode",
        security=spec.pod_security,
        grace_s=federation.drain_of(pool).termination_grace_period_seconds,
        runtime_class=gpus.runtime_class,
    )
    return pod_template(pool.pod_template, pod)


def _supernode(federation: Federation, pool: Pool, dialect: Dialect, gpus: Gpus) -> Manifest:
    spec = federation.spec
    port = spec.superlink.service.ports.grpc
    flags = NodeFlags(
        superlink=f"{names.superlink_name(federation)}:{port}",
        isolation=spec.isolation_mode,
        insecure=spec.insecure,
        tls=spec.tls is not None,
        auth=pool.auth is not None,
        superexec_secret=spec.superexec_auth is not None,
        probes=spec.probes.enabled,
        # From the Federation alone: a template that knew the scale would restart at each change.
        node_config=node_config(
            pool.node_config, pool=pool.name, partitions=pool.partitions or pool.replicas or 1
        ),
    )
    here = spec.isolation_mode == "subprocess"
    container: Manifest = {
        "name": "supernode",
        "image": pool.images.supernode or spec.supernodes.image,
        "args": [*dialect.supernode(flags), *pool.extra_args],
        "env": by_key("name", _identity(federation, pool), _env(federation, pool, gpus)),
        "volumeMounts": by_key("mountPath", _mounts(federation, pool, gpus), pool.volume_mounts),
        "resources": merge_resources(pool.supernode_resources, gpus.resources if here else None),
        **parts.probes(spec.probes, names.HEALTH_PORT),
    }
    pre_stop = federation.drain_of(pool).pre_stop
    if pre_stop is not None:
        container["lifecycle"] = {"preStop": {"exec": {"command": pre_stop}}}
    return container | gpus.security


def _superexec(federation: Federation, pool: Pool, dialect: Dialect, gpus: Gpus) -> Manifest:
    spec = federation.spec
    flags = ExecFlags(
        runs="clientapp",
        insecure=spec.insecure,
        tls=spec.tls is not None,
        superexec_secret=spec.superexec_auth is not None,
        probes=spec.probes.enabled,
    )
    given = pool.superexec_volume_mounts
    ours = [_PODINFO_MOUNT, *parts.secret_mounts(spec, None), *gpus.mounts]
    theirs = pool.volume_mounts if given is None else given
    return {
        "name": "superexec-clientapp",
        "image": pool.images.superexec_client_app,
        "args": [*dialect.superexec(flags), *pool.superexec_extra_args],
        "env": _env(federation, pool, gpus),
        "volumeMounts": by_key("mountPath", ours, theirs),
        "resources": merge_resources(pool.superexec_resources, gpus.resources),
        **parts.superexec_probes(spec.probes),
        **gpus.security,
    }


def _env(federation: Federation, pool: Pool, gpus: Gpus) -> list[Manifest]:
    return by_key("name", gpus.env, federation.spec.supernodes.env, pool.env)


def _identity(federation: Federation, pool: Pool) -> list[Manifest]:
    env = []
    stateful = federation.spec.mode == "StatefulSet"
    if uses(pool.node_config, "index"):
        # The StatefulSet controller writes this label (Kubernetes 1.28 and newer).
        path = "metadata.labels['apps.kubernetes.io/pod-index']"
        env.append(parts.field_env("FLOWER_INDEX", path))
    if uses(pool.node_config, "node") or (pool.auth is not None and not stateful):
        env.append(parts.field_env("FLOWER_NODE_NAME", "spec.nodeName"))
    if pool.auth is not None and stateful:
        env.append(parts.field_env("FLOWER_POD_NAME", "metadata.name"))
    return env


def _mounts(federation: Federation, pool: Pool, gpus: Gpus) -> list[Manifest]:
    mounts = [_PODINFO_MOUNT, *parts.secret_mounts(federation.spec, "flower-tls"), *gpus.mounts]
    if pool.auth is not None:
        stateful = federation.spec.mode == "StatefulSet"
        # One key of the Secret: no container sees those of its siblings.
        key = "$(FLOWER_POD_NAME)" if stateful else "$(FLOWER_NODE_NAME)"
        mount = {"name": "flower-auth", "mountPath": names.AUTH_KEY, "subPathExpr": key}
        mounts.append(mount | {"readOnly": True})
    return mounts
