"""Objects for tests: a kind with rules and defaults, and the usual workloads."""

from tests.cluster.objects import Json

GROUP = "ground.example.org"
WIDGETS = f"/apis/{GROUP}/v1/namespaces/default/widgets"
STATEFUL_SETS = "/apis/apps/v1/namespaces/default/statefulsets"
SERVICES = "/api/v1/namespaces/default/services"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def widget_crd() -> Json:
    """A kind with everything: defaults, limits, CEL, a list with keys, status and scale."""
    part = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "pattern": "^[a-z]+$"},
            "size": {"type": "integer", "default": 1, "minimum": 1},
        },
    }
    spec = {
        "type": "object",
        "required": ["mode"],
        "properties": {
            "mode": {"type": "string", "enum": ["fast", "slow"]},
            "replicas": {"type": "integer", "minimum": 0, "default": 1},
            "owner": {
                "type": "string",
                "x-kubernetes-validations": [
                    {"rule": "self == oldSelf", "message": "the owner is fixed"}
                ],
            },
            "limit": {"x-kubernetes-int-or-string": True},
            "parts": {
                "type": "array",
                "maxItems": 3,
                "items": part,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "x-kubernetes-validations": [
            {
                "rule": "self.mode != 'slow' || self.replicas <= 2",
                "message": "a slow widget has at most two replicas",
            }
        ],
    }
    status = {
        "type": "object",
        "properties": {
            "replicas": {"type": "integer"},
            "selector": {"type": "string"},
            "phase": {"type": "string"},
        },
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "required": ["spec"],
                "properties": {"spec": spec, "status": status},
            }
        },
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": "Mode", "type": "string", "jsonPath": ".spec.mode"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
        ],
    }
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def widget(name: str = "one", **spec: object) -> Json:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"mode": "fast", **spec},
    }


def config_map(name: str, owner: Json | None = None, **data: str) -> Json:
    metadata: Json = {"name": name}
    if owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                "blockOwnerDeletion": True,
            }
        ]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def pod_spec(command: list[str], **more: object) -> Json:
    container = {"name": "main", "image": "ground", "command": command}
    return {"containers": [container], "terminationGracePeriodSeconds": 5, **more}


def workload(kind: str, name: str, command: list[str] | None = None, **spec: object) -> Json:
    """A StatefulSet, DaemonSet or Deployment whose pods are labelled with its name."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod_spec(command or ["sleep", "60"])}
    whole: Json = {"selector": {"matchLabels": labels}, "template": template}
    if kind == "StatefulSet":
        whole["serviceName"] = name
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**whole, **spec},
    }


def service(name: str, port: int = 80, **spec: object) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}], **spec},
    }
