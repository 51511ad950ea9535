"""Parts that containers of both sides have: probes, secrets, environment, claims."""

from typing import Literal

from uncurtail.operator import names
from uncurtail.operator.fields import Manifest
from uncurtail.operator.poolspec import Pool, Retention
from uncurtail.operator.spec import FederationSpec, Probes, SuperLink

Side = Literal["superlink", "supernode"]


def probes(wanted: Probes, port: int) -> Manifest:
    """Probes of Flower's gRPC health service; while it starts, nothing else is asked."""
    if not wanted.enabled:
        return {}
    asked: Manifest = {
        "grpc": {"port": port},
        "periodSeconds": wanted.period_seconds,
        "timeoutSeconds": 5,
    }
    starts = -(-wanted.startup_seconds // wanted.period_seconds)
    return {
        "startupProbe": asked | {"failureThreshold": starts},
        "readinessProbe": asked | {"failureThreshold": 3},
        "livenessProbe": asked | {"failureThreshold": wanted.failure_threshold},
    }


def superexec_probes(wanted: Probes) -> Manifest:
    """The same without readiness: a SuperExec that is away makes nobody unreachable."""
    asked = probes(wanted, names.SUPEREXEC_HEALTH_PORT)
    return {name: probe for name, probe in asked.items() if name != "readinessProbe"}


def secret_volumes(spec: FederationSpec, side: Side) -> list[Manifest]:
    """Volumes with certificates and secrets; SuperNodes never see the SuperLink's key."""
    volumes: list[Manifest] = []
    if spec.tls is not None:
        if side == "superlink":
            volumes.append(_secret("flower-tls", spec.tls.secret_name))
        else:
            name = spec.tls.ca_secret_name or spec.tls.secret_name
            volumes.append(_secret("flower-tls", name, "ca.crt"))
        guests = spec.isolation_mode == "process" or spec.superlink.supernode_keys is not None
        if side == "superlink" and guests:
            volumes.append(_secret("flower-ca", spec.tls.secret_name, "ca.crt"))
    if spec.superexec_auth is not None:
        volumes.append(_secret("flower-superexec", spec.superexec_auth.secret_name, "secret"))
    return volumes


def secret_mounts(spec: FederationSpec, tls_volume: str | None) -> list[Manifest]:
    """Where a container finds them; `tls_volume` None for one that checks no certificate."""
    mounts: list[Manifest] = []
    if spec.tls is not None and tls_volume is not None:
        mounts.append({"name": tls_volume, "mountPath": names.TLS_DIR, "readOnly": True})
    if spec.superexec_auth is not None:
        folder = names.SUPEREXEC_SECRET.rpartition("/")[0]
        mounts.append({"name": "flower-superexec", "mountPath": folder, "readOnly": True})
    return mounts


def field_env(name: str, path: str) -> Manifest:
    """An environment variable with a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def claims(owner: SuperLink | Pool) -> list[Manifest]:
    """Templates of claims, with the SuperLink's database if it has one."""
    templates = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": claim["metadata"],
            "spec": claim["spec"],
        }
        for claim in owner.volume_claim_templates
    ]
    if isinstance(owner, SuperLink) and owner.persistence is not None:
        spec: Manifest = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": owner.persistence.size}},
        }
        if owner.persistence.storage_class_name is not None:
            spec["storageClassName"] = owner.persistence.storage_class_name
        templates.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "flower-state"},
                "spec": spec,
            }
        )
    return templates


def retention(wanted: Retention | None) -> Manifest:
    """What becomes of claims; nothing is said where the user says nothing."""
    if wanted is None:
        return {}
    return {"persistentVolumeClaimRetentionPolicy": wanted.model_dump(by_alias=True)}


def _secret(volume: str, secret: str, *keys: str) -> Manifest:
    # 0440 and fsGroup would be stricter, and unreadable where an image's user is another.
    source: Manifest = {"secretName": secret}
    if keys:
        source["items"] = [{"key": key, "path": key} for key in keys]
    return {"name": volume, "secret": source}
