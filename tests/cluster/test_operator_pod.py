"""The operator as `helm install` starts it: in a pod, with the token of its service account."""

import json
from pathlib import Path

import pytest
import yaml

from tests.charts import OPERATOR, helm
from tests.cluster.operators import FEDERATIONS, holds, make_namespace

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

NAMESPACE = ("-n", "flower-system")


def test_helm_installs_upgrades_and_removes_an_operator_that_keeps_a_federation(kubelet, pods):
    kubeconfig = kubelet.cluster.kubeconfig()

    def logs():
        return "".join(path.read_text() for path in kubelet.cluster.folder.rglob("operator.log"))

    def run(*words):
        try:
            return helm(*words, *NAMESPACE, kubeconfig=kubeconfig)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{logs()}") from None

    waits = ("--wait", "--timeout", "120s")
    run("install", "flower", str(OPERATOR), "--create-namespace", *waits)
    make_namespace(pods, "ml")
    example = Path(__file__).parents[2] / "deploy/sites.yaml"
    federation = yaml.safe_load(example.read_text())
    federation["metadata"]["namespace"] = "ml"
    pods.done(pods.post(FEDERATIONS, federation))
    wait_until = kubelet.cluster.wait_until
    assert wait_until(holds("Ready", name="sites"), 60), logs()
    asked = {name for name, _ in kubelet.cluster.server.requests}
    assert "system:serviceaccount:flower-system:flower" in asked

    run("upgrade", "flower", str(OPERATOR), "--set", "podAnnotations.changed=yes", *waits)
    (release,) = json.loads(run("list", "-o", "json"))
    assert (release["revision"], release["status"]) == ("2", "deployed")

    run("uninstall", "flower", *waits)
    assert wait_until(lambda api: api.list("deployments") == [], 30)
    assert wait_until(lambda api: len(api.list("statefulsets")) == 2, 1), "what it kept stays"
