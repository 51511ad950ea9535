"""The SuperLink's objects: its StatefulSet and its Service."""

from uncurtail.operator import names, nodekeys, parts
from uncurtail.operator.dialects import Dialect, ExecFlags, LinkFlags
from uncurtail.operator.fields import Manifest
from uncurtail.operator.pods import Pod, by_key, pod_template
from uncurtail.operator.spec import Federation


def service(federation: Federation, dialect: Dialect) -> Manifest:
    """The Service that SuperNodes and users dial; its ports keep their numbers over dialects."""
    wanted = federation.spec.superlink.service
    ports = wanted.ports
    offered = {"fleet": ports.grpc, "control": ports.extra}
    if federation.spec.isolation_mode == "process":
        offered["serverappio"] = ports.server_app_io
    if dialect.one_port:
        offered["http"] = ports.http
    name = names.superlink_name(federation)
    labels = {**wanted.labels, **names.labels(federation)}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(federation, name, labels, wanted.annotations),
        "spec": {
            "type": wanted.type,
            "selector": names.selector(federation),
            "ports": [
                {
                    "name": port_name,
                    "port": number,
                    "targetPort": "http" if dialect.one_port else port_name,
                    "protocol": "TCP",
                }
                for port_name, number in offered.items()
            ],
        },
    }


def stateful_set(federation: Federation, dialect: Dialect) -> Manifest:
    """The one pod of the SuperLink, with a SuperExec for ServerApps in isolation mode process."""
    spec = federation.spec
    name = names.superlink_name(federation)
    containers = [_superlink(federation, dialect)]
    if spec.isolation_mode == "process":
        containers.append(_superexec(federation, dialect))
    containers += nodekeys.containers(spec)
    ours = [*parts.secret_volumes(spec, "superlink"), *nodekeys.volumes(spec)]
    pod = Pod(
        labels=names.labels(federation),
        containers=tuple(containers),
        volumes=tuple(by_key("name", ours, spec.superlink.volumes)),
        service_account=name,
        security=spec.pod_security,
        owns_volumes=spec.superlink.persistence is not None,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(federation, name, names.labels(federation)),
        "spec": {
            "replicas": 1,
            "serviceName": name,
            "podManagementPolicy": "OrderedReady",
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector(federation)},
            "template": pod_template(spec.superlink.pod_template, pod),
            "volumeClaimTemplates": parts.claims(spec.superlink),
            **parts.retention(spec.superlink.persistent_volume_claim_retention_policy),
        },
    }


def _superlink(federation: Federation, dialect: Dialect) -> Manifest:
    spec = federation.spec
    link = spec.superlink
    flags = LinkFlags(
        isolation=spec.isolation_mode,
        insecure=spec.insecure,
        tls=spec.tls is not None,
        auth=any(pool.auth for pool in spec.supernodes.pools),
        superexec_secret=spec.superexec_auth is not None,
        database=link.persistence is not None,
        probes=spec.probes.enabled,
    )
    state = [{"name": "flower-state", "mountPath": names.STATE_DIR}] if link.persistence else []
    mounts = [*state, *parts.secret_mounts(spec, "flower-tls")]
    return {
        "name": "superlink",
        "image": link.image,
        "args": [*dialect.superlink(flags), *link.extra_args],
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"}
            for name, port in dialect.link_ports(spec.isolation_mode).items()
        ],
        "env": by_key("name", link.env),
        "volumeMounts": by_key("mountPath", mounts, link.volume_mounts),
        "resources": link.resources or {},
        **parts.probes(spec.probes, names.HEALTH_PORT),
    }


def _superexec(federation: Federation, dialect: Dialect) -> Manifest:
    spec = federation.spec
    link = spec.superlink
    flags = ExecFlags(
        runs="serverapp",
        insecure=spec.insecure,
        tls=spec.tls is not None,
        superexec_secret=spec.superexec_auth is not None,
        probes=spec.probes.enabled,
    )
    given = link.superexec_volume_mounts
    # The database is the SuperLink's alone, and so is the private key.
    mounts = parts.secret_mounts(spec, "flower-ca")
    theirs = link.volume_mounts if given is None else given
    return {
        "name": "superexec-serverapp",
        "image": link.superexec_image,
        "args": [*dialect.superexec(flags), *link.superexec_extra_args],
        "env": by_key("name", link.env),
        "volumeMounts": by_key("mountPath", mounts, theirs),
        "resources": link.superexec_resources or {},
        **parts.superexec_probes(spec.probes),
    }
