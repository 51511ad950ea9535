"""The coordinator of one run: its experiment, its disk, its pod, and the Service of its gate."""

from dataclasses import dataclass
from typing import Literal

from uncurtail.deploy.parts import (
    CACHE,
    EXPERIMENT_DIR,
    EXPERIMENT_FILE,
    KUBECONFIG_DIR,
    KUBECONFIG_FILE,
    RUNS,
    Name,
    container_security,
    pod_security,
)
from uncurtail.operator.fields import Manifest

ServiceType = Literal["ClusterIP", "LoadBalancer", "NodePort"]


@dataclass(frozen=True, slots=True)
class Gate:
    """How sites elsewhere reach the coordinator."""

    port: int
    service: ServiceType


@dataclass(frozen=True, slots=True)
class Coordinator:
    """All that its documents depend on."""

    name: Name
    image: str
    experiment: str  # TOML
    settings: tuple[str, ...]  # KEY=VALUE, as --set takes them
    gate: Gate | None
    needs_credentials: bool  # the pod waits for the Secret; else it does without
    in_cluster: bool  # it starts pods of sites in its own cluster
    elsewhere: bool  # and in others, for which it has a kubeconfig
    storage: str
    storage_class: str | None  # None for the cluster's default
    memory: str
    grace_s: int


def documents(made: Coordinator) -> list[Manifest]:
    """What `kubectl apply` takes; what one refers to comes before it."""
    found = [_experiment(made), _claim(made), _account(made)]
    if made.gate is not None:
        found.append(_service(made.name, made.gate))
    return [*found, _stateful_set(made)]


def _experiment(made: Coordinator) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": made.name.meta("experiment"),
        "data": {EXPERIMENT_FILE: made.experiment},
    }


def _claim(made: Coordinator) -> Manifest:
    spec: Manifest = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": made.storage}},
    }
    if made.storage_class is not None:
        spec["storageClassName"] = made.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": made.name.meta("coordinator"),
        "spec": spec,
    }


def _account(made: Coordinator) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": made.name.meta("coordinator"),
    }


def _service(name: Name, gate: Gate) -> Manifest:
    port = {"name": "gate", "port": gate.port, "targetPort": "gate", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": name.meta("gate", name.gate),
        "spec": {
            "type": gate.service,
            "selector": name.labels("coordinator"),
            "ports": [port],
        },
    }


def _stateful_set(made: Coordinator) -> Manifest:
    labels = made.name.labels("coordinator")
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": made.name.meta("coordinator"),
        "spec": {
            # Not a Deployment: of a StatefulSet there are never two pods, on whichever nodes.
            "replicas": 1,
            "serviceName": made.name.of,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(made)},
        },
    }


def _pod(made: Coordinator) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "experiment", "configMap": {"name": made.name.of}},
        {"name": "state", "persistentVolumeClaim": {"claimName": made.name.of}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if made.elsewhere:
        volumes.append({"name": "clusters", "secret": {"secretName": made.name.kubeconfig}})
    return {
        "serviceAccountName": made.name.of,
        "automountServiceAccountToken": made.in_cluster,
        # The variables of Services would begin as ours do.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": made.grace_s,
        "securityContext": pod_security(made.gate is not None and made.gate.port < 1024),
        "containers": [_container(made)],
        "volumes": volumes,
    }


def _container(made: Coordinator) -> Manifest:
    experiment = f"{EXPERIMENT_DIR}/{EXPERIMENT_FILE}"
    container: Manifest = {
        "name": "coordinator",
        "image": made.image,
        "command": ["uncurtail", "run", experiment, "--runs", RUNS, "--service"],
        "args": [word for setting in made.settings for word in ("--set", setting)],
        "workingDir": RUNS,
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "XDG_CACHE_HOME", "value": CACHE}],
        "envFrom": [
            {
                "secretRef": {
                    "name": made.name.credentials,
                    "optional": not made.needs_credentials,
                }
            }
        ],
        "resources": {"requests": {"cpu": "1", "memory": made.memory}},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "experiment", "mountPath": EXPERIMENT_DIR, "readOnly": True},
            {"name": "state", "mountPath": RUNS, "subPath": "runs"},
            {"name": "state", "mountPath": CACHE, "subPath": "cache"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    if made.elsewhere:
        path = f"{KUBECONFIG_DIR}/{KUBECONFIG_FILE}"
        container["env"].append({"name": "KUBECONFIG", "value": path})
        container["volumeMounts"].append(
            {"name": "clusters", "mountPath": KUBECONFIG_DIR, "readOnly": True}
        )
    if made.gate is not None:
        container |= _watched(made.gate)
    return container


def _watched(gate: Gate) -> Manifest:
    """The gate's port, and that it answers.

    There is no probe of life: preparing data and a wait after the end have no gate, the supervisor
    starts again what dies, and when it dies itself the container ends. A restart by a mistaken
    probe would cost the open round.
    """
    return {
        "ports": [{"name": "gate", "containerPort": gate.port, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": "gate"}, "periodSeconds": 10},
    }
