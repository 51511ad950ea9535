"""The template of the Helm chart: the coordinator's documents, with places left open for values."""

import json
import re
from collections.abc import Mapping
from typing import Any

from uncurtail.core.clouds import KubernetesSite
from uncurtail.deploy import clusters, coordinator
from uncurtail.deploy.clusters import Placed
from uncurtail.deploy.coordinator import Coordinator, Gate
from uncurtail.deploy.parts import EXPERIMENT_FILE, Name
from uncurtail.deploy.text import as_yaml
from uncurtail.operator.fields import Manifest

# Where a document says what a value says, as JSON. A place that is not there is made.
OPEN: Mapping[str, Mapping[str, str]] = {
    "ConfigMap": {f"data/{EXPERIMENT_FILE}": "experiment"},
    "PersistentVolumeClaim": {"spec": "storage"},
    "Service": {
        "metadata/annotations": "gate.annotations",
        "spec/type": "gate.type",
        "spec/ports/0/port": "gate.port",
    },
    "StatefulSet": {
        "spec/template/spec/terminationGracePeriodSeconds": "terminationGracePeriodSeconds",
        "spec/template/spec/imagePullSecrets": "imagePullSecrets",
        "spec/template/spec/nodeSelector": "nodeSelector",
        "spec/template/spec/tolerations": "tolerations",
        "spec/template/spec/containers/0/image": "image",
        "spec/template/spec/containers/0/args": "arguments",
        "spec/template/spec/containers/0/resources": "resources",
        "spec/template/spec/containers/0/ports/0/containerPort": "gate.port",
    },
}
HEAD = "# Made from the program's own parts by: uncurtail deploy chart\n"


def template() -> str:
    """What deploy/helm/uncurtail/templates holds; Helm fills it in."""
    name = Name("{{ .Release.Name }}", "{{ .Release.Namespace }}")
    made = Coordinator(
        name=name,
        image="",
        experiment="",
        settings=(),
        gate=Gate(8443, "ClusterIP"),
        needs_credentials=False,
        in_cluster=True,
        elsewhere=True,
        storage="",
        storage_class=None,
        memory="",
        grace_s=0,
    )
    both = [
        Placed("pods", None, name.namespace, KubernetesSite(image="any")),
        Placed("pool", None, name.namespace, KubernetesSite(federation="any", pool="any")),
    ]
    documents = [*clusters.access(name, both, name), *coordinator.documents(made)]
    opened = [_opened(json.loads(json.dumps(document))) for document in documents]
    # A value is JSON, so it must not stand in the quotes of YAML.
    return HEAD + re.sub(r"'(\{\{ toJson [^}]+ \}\})'", r"\1", as_yaml(opened))


def _opened(document: Manifest) -> Manifest:
    for path, value in OPEN.get(document["kind"], {}).items():
        *folders, last = path.split("/")
        inside: Any = document
        for each in folders:
            inside = inside[int(each) if isinstance(inside, list) else each]
        inside[last] = f"{{{{ toJson .Values.{value} }}}}"
    if document["kind"] == "StatefulSet":
        _without_clusters(document)
    return document


def _without_clusters(document: Manifest) -> None:
    """A chart cannot know whether there are sites in other clusters: the Secret may be missing."""
    for volume in document["spec"]["template"]["spec"]["volumes"]:
        if volume["name"] == "clusters":
            volume["secret"]["optional"] = True
