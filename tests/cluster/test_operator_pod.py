"""The operator as the chart starts it: in a pod, with the token of its service account."""

from pathlib import Path

import pytest
import yaml

from tests.cluster.operators import FEDERATIONS, holds, install, post
from tests.federation.test_chart import rendered

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]


def test_the_charts_deployment_becomes_ready_and_keeps_a_federation(kubelet, pods):
    install(pods)
    for thing in rendered():
        if "rbac" not in thing["apiVersion"]:
            post(pods, thing)
    example = Path(__file__).parents[2] / "deploy/sites.yaml"
    federation = yaml.safe_load(example.read_text())
    federation["metadata"]["namespace"] = "ml"
    pods.done(pods.post(FEDERATIONS, federation))

    def is_available(api):
        return any(d.get("status", {}).get("availableReplicas") for d in api.list("deployments"))

    def logs():
        return "".join(path.read_text() for path in kubelet.cluster.folder.rglob("operator.log"))

    wait_until = kubelet.cluster.wait_until
    assert wait_until(is_available, 90), logs()
    assert wait_until(holds("Ready", name="sites"), 60), logs()
    asked = {name for name, _ in kubelet.cluster.server.requests}
    assert "system:serviceaccount:flower-system:flower" in asked
