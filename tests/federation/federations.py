"""Federations to test with: a small one, a broad matrix, and what other operators leave behind."""

import copy
import itertools
from typing import Any

from uncurtail.operator.children import build_children
from uncurtail.operator.observed import Ref, ref_of
from uncurtail.operator.spec import Federation

UID = "5a1f0c1e-0000-4000-8000-000000000001"


def pool(name="gpu", **fields) -> dict[str, Any]:
    return {"name": name, "replicas": 2, "images": {}, **fields}


def manifest(*pools, name="fed", link=None, nodes=None, **spec) -> dict[str, Any]:
    """A Federation in mode StatefulSet, isolation subprocess, unless the spec says otherwise."""
    made: dict[str, Any] = {
        "apiVersion": "flwr.exalsius.ai/v1",
        "kind": "Federation",
        "metadata": {"name": name, "namespace": "ml", "uid": UID, "generation": 1},
        "spec": {
            "mode": "StatefulSet",
            "isolationMode": "subprocess",
            **spec,
            "superlink": {"image": "flwr/superlink:1.41.0", **(link or {})},
            "supernodes": {
                "image": "flwr/supernode:1.41.0",
                **(nodes or {}),
                "pools": [copy.deepcopy(each) for each in pools or (pool(),)],
            },
        },
    }
    if made["spec"]["isolationMode"] == "process":
        made["spec"]["superlink"].setdefault("superexecImage", "flwr/superexec:1.41.0")
        for each in made["spec"]["supernodes"]["pools"]:
            each.setdefault("images", {}).setdefault("superexecClientApp", "example/app:1")
    if made["spec"]["mode"] == "DaemonSet":
        for each in made["spec"]["supernodes"]["pools"]:
            each.pop("replicas", None)
    return made


def children(federation) -> dict[Ref, dict[str, Any]]:
    return {ref_of(child): child for child in build_children(Federation.of(federation))}


def container(workload, name) -> dict[str, Any]:
    found = workload["spec"]["template"]["spec"]["containers"]
    return next(each for each in found if each["name"] == name)


GPUS = {
    "none": {},
    "nvidia": {"enabled": True, "vendor": "nvidia", "count": 2},
    "custom": {"enabled": True, "resourceName": "example.com/gpu"},
    "all-nvidia": {"mountAll": True, "vendor": "nvidia"},
    "all-amd": {"mountAll": True, "vendor": "amd"},
}
VOLUMES = {
    "no-volumes": {},
    "volumes": {
        "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "10Gi"}}],
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "data", "mountPath": "/cache", "subPath": "cache"},
        ],
        "superexecVolumeMounts": [{"name": "data", "mountPath": "/app-data"}],
    },
    "claims": {
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "scratch", "labels": {"team": "ml"}},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "5Gi"}},
                },
            }
        ],
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"},
    },
}
SECURITY = {
    "plain": {},
    "tls": {"insecure": False, "tls": {"secretName": "tls"}, "networkPolicy": {"enabled": True}},
    "restricted": {
        "insecure": False,
        "tls": {"secretName": "tls", "caSecretName": "ca"},
        "podSecurity": "restricted",
        "networkPolicy": {
            "enabled": True,
            "allowFrom": [{"namespaceSelector": {"matchLabels": {"team": "ml"}}}],
        },
    },
}
TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "ml"}, "annotations": {"note": "kept"}},
    "spec": {
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ],
        "initContainers": [{"name": "warm", "image": "busybox:1", "args": ["true"]}],
        "imagePullSecrets": [{"name": "registry"}],
    },
}


def matrix():
    """Every combination of mode, isolation, GPU, volumes and security; the rest goes along."""
    ways = itertools.product(
        ("StatefulSet", "DaemonSet"),
        ("process", "subprocess"),
        GPUS,
        VOLUMES,
        SECURITY,
        ("1.41.0", "1.30.0"),
    )
    for mode, isolation, gpu, volumes, security, version in ways:
        keyed = security != "plain" and version == "1.41.0"
        extra: dict[str, Any] = {"auth": {"secretName": "keys"}} if keyed else {}
        if keyed and mode == "StatefulSet":
            extra |= {
                "nodeConfig": {"partition-id": "{index}", "num": "{replicas}", "at": "{node}"},
                "drain": {"timeoutSeconds": 30, "preStop": ["sh", "-c", "true"]},
                "podDisruptionBudget": {"maxUnavailable": "50%"},
                "podTemplate": TEMPLATE,
            }
        spec: dict[str, Any] = {**SECURITY[security], "version": version}
        if keyed and isolation == "process":
            spec["superexecAuth"] = {"secretName": "shared"}
        link: dict[str, Any] = {"image": f"flwr/superlink:{version}", **VOLUMES[volumes]}
        if keyed:
            link["supernodeKeys"] = {"configMapName": "public-keys"}
        if security == "restricted":
            link |= {
                "persistence": {"size": "2Gi", "storageClassName": "fast"},
                "podDisruptionBudget": {"minAvailable": 1},
                "podTemplate": TEMPLATE,
                "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            }
        each = pool(gpu=GPUS[gpu], env=[{"name": "A", "value": "1"}], **VOLUMES[volumes], **extra)
        yield (
            "-".join((mode, isolation, gpu, volumes, security, version)),
            manifest(
                each,
                pool("cpu", **({"auth": {"secretName": "keys-cpu"}} if keyed else {})),
                mode=mode,
                isolationMode=isolation,
                link=link,
                nodes={"env": [{"name": "B", "value": "2"}]},
                **spec,
            ),
        )
