"""The operator's life as its users live it, by helm and kubectl alone, so on any cluster.

Here it is the tests' own, whose pods are processes. With UNCURTAIL_KUBECONFIG it is also the
cluster that the file leads to, say of kind: `pytest -m cluster`. Its nodes must have the image
UNCURTAIL_IMAGE (REPOSITORY:TAG, built from deploy/Dockerfile) and be able to pull Flower's.
"""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.charts import OPERATOR, helm
from tests.cluster.clients import Kubectl
from tests.cluster.objects import Json

KUBECONFIG, IMAGE = "UNCURTAIL_KUBECONFIG", "UNCURTAIL_IMAGE"
RELEASE = "uncurtail-test"
POOL = "nights-supernode-a"
PARTS = "statefulsets,pods,services,serviceaccounts,poddisruptionbudgets,supernodepools"
MINE = "app.kubernetes.io/instance=nights"


@dataclass
class Place:
    """A cluster, and a namespace of it for this test alone."""

    kubectl: Kubectl
    options: list[str] = field(default_factory=list)  # for the operator's release
    namespace: str = field(default_factory=lambda: f"uncurtail-{secrets.token_hex(3)}")

    def __call__(self, *words: str, sent: Json | None = None) -> str:
        return self.kubectl("-n", self.namespace, *words, sent=sent)

    def helm(self, *words: str) -> str:
        return helm(*words, "-n", RELEASE, kubeconfig=self.kubectl.kubeconfig)

    def until(self, condition: str, *what: str) -> None:
        """Wait as long as it may take there."""
        self("wait", f"--for={condition}", f"--timeout={self.kubectl.patience_s}s", *what)

    def left(self) -> list[str]:
        """What there is of the Federation."""
        listed = json.loads(self("get", PARTS, "-l", MINE, "-o", "json"))
        return [f"{thing['kind']}/{thing['metadata']['name']}" for thing in listed["items"]]


@pytest.fixture
def here(kubelet) -> Place:
    admin = kubelet.cluster.kubeconfig()
    return Place(Kubectl.named(admin, kubelet.cluster.folder, patience_s=120))


@pytest.fixture
def there(tmp_path) -> Place:
    if not os.environ.get(KUBECONFIG):
        pytest.skip(f"{KUBECONFIG} names no cluster")
    repository, _, tag = os.environ.get(IMAGE, "uncurtail:0.1.0").rpartition(":")
    options = ["--set", f"image.repository={repository}", "--set", f"image.tag={tag}"]
    return Place(Kubectl.named(Path(os.environ[KUBECONFIG]), tmp_path, patience_s=600), options)


@pytest.fixture(
    params=[
        pytest.param("here", marks=[pytest.mark.stack, pytest.mark.timeout(300)]),
        pytest.param("there", marks=[pytest.mark.cluster, pytest.mark.timeout(3600)]),
    ]
)
def place(request) -> Iterator[Place]:
    """A cluster, which in the end is as it was, but for the kinds of ours."""
    found: Place = request.getfixturevalue(request.param)
    mine = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": found.namespace}}
    found.kubectl("apply", "-f", "-", sent=mine)
    yield found
    # Its finalizers need the operator: first what it keeps, then itself.
    found(
        "delete",
        "federations",
        "--all",
        f"--timeout={found.kubectl.patience_s}s",
        "--ignore-not-found",
    )
    found.helm("uninstall", RELEASE, "--wait", "--ignore-not-found")
    found.kubectl("delete", "namespace", found.namespace, RELEASE, "--wait=false")


def federation(paused: bool = False, version: str = "1.41") -> Json:
    return {
        "apiVersion": "flwr.exalsius.ai/v1",
        "kind": "Federation",
        "metadata": {"name": "nights"},
        "spec": {
            "mode": "StatefulSet",
            "isolationMode": "subprocess",
            "version": version,
            "drain": {"timeoutSeconds": 2, "terminationGracePeriodSeconds": 10},
            "superlink": {"image": "flwr/superlink:1.41.0"},
            "supernodes": {
                "image": "flwr/supernode:1.41.0",
                "pools": [{"name": "a", "replicas": 1, "paused": paused}],
            },
        },
    }


def twice() -> Json:
    """Two pools of one name."""
    made = federation()
    made["spec"]["supernodes"]["pools"] *= 2
    return made


def test_a_federation_comes_grows_outlives_its_operator_pauses_and_goes(place):
    waits = ("--wait", "--timeout", f"{place.kubectl.patience_s}s")
    place.helm("install", RELEASE, str(OPERATOR), "--create-namespace", *place.options, *waits)
    said = place.kubectl("-n", place.namespace, "apply", "-f", "-", sent=twice(), fails=True)
    assert "uplicate" in said
    place("apply", "-f", "-", sent=federation())
    place.until("condition=Ready", "federation/nights")
    place.until("jsonpath={.status.readyReplicas}=1", f"statefulset/{POOL}")

    place("scale", f"supernodepool/{POOL}", "--replicas=2")
    place.until("jsonpath={.status.readyReplicas}=2", f"statefulset/{POOL}")
    place("apply", "-f", "-", sent=federation())
    place.until("condition=Ready", "federation/nights")
    place.until("jsonpath={.spec.replicas}=2", f"statefulset/{POOL}")

    before = place.left()
    place("apply", "-f", "-", sent=federation(version="1.36"))  # one that cannot be built for
    place.until("condition=Degraded", "federation/nights")
    assert place.left() == before, "nothing that runs is touched"

    # Another template of the operator: the next one takes over what it finds.
    changed = ("--set", "podAnnotations.changed=yes")
    place.helm("upgrade", RELEASE, str(OPERATOR), *place.options, *changed, *waits)
    (release,) = json.loads(place.helm("list", "-o", "json"))
    assert (release["revision"], release["status"]) == ("2", "deployed")
    place("apply", "-f", "-", sent=federation(paused=True))
    place.until("jsonpath={.spec.replicas}=0", f"statefulset/{POOL}")
    place.until("delete", "pod", "-l", f"{MINE},flower.flwr.ai/pool=a")
    assert "StatefulSet/nights-superlink" in place.left()

    place("apply", "-f", "-", sent=federation())
    place.until("jsonpath={.status.readyReplicas}=2", f"statefulset/{POOL}")
    place("delete", "federation/nights", f"--timeout={place.kubectl.patience_s}s")
    place.until("delete", "pod,statefulset", "-l", MINE)
    assert place.left() == []
