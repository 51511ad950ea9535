"""A federation of real Flower processes in pods: they find each other by the name of a Service."""

import pytest

from tests.cluster.clients import MERGE
from tests.cluster.controllers.pods import is_up
from tests.cluster.samples import SERVICES, STATEFUL_SETS, service, workload

SUPERLINK = [
    "flower-superlink",
    "--isolation=process",
    "--insecure",
    "--host=0.0.0.0",
    "--port=8000",
    "--health-server-address=0.0.0.0:8081",
    "--database=/data/state.db",
]
SUPERNODE = [
    "flower-supernode",
    "--superlink=fed-superlink:8000",
    "--isolation=process",
    "--insecure",
    "--node-config=site='$(POD_NAME)'",
]
CLAIM = {
    "metadata": {"name": "data"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}
# Flower takes about 4 s to start on an idle core, and much longer on a shared one.
START_S = 90


def federation():
    """A SuperLink with a disk and a probe of its health, and a pool of SuperNodes."""
    superlink = workload("StatefulSet", "fed-superlink", SUPERLINK, volumeClaimTemplates=[CLAIM])
    container = superlink["spec"]["template"]["spec"]["containers"][0]
    container["readinessProbe"] = {"grpc": {"port": 8081}, "periodSeconds": 1}
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    pool = workload("StatefulSet", "fed-pool", SUPERNODE, podManagementPolicy="Parallel")
    container = pool["spec"]["template"]["spec"]["containers"][0]
    name = {"fieldRef": {"fieldPath": "metadata.name"}}
    container["env"] = [{"name": "POD_NAME", "valueFrom": name}]
    pool["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30
    return superlink, pool


def log_of(kubelet, name):
    """What a pod has printed; read from the cluster's own thread, where no request can be made."""
    for worker in kubelet.workers.values():
        if worker.pod["metadata"]["name"] == name and worker.main[0].log.exists():
            return worker.main[0].log.read_text()
    return ""


@pytest.mark.stack
@pytest.mark.timeout(300)
def test_a_supernode_registers_by_name_and_says_good_bye(kubelet, pods):
    wait_until = kubelet.cluster.wait_until
    for thing in federation():
        pods.done(pods.post(STATEFUL_SETS, thing))
    pods.done(pods.post(SERVICES, service("fed-superlink", 8000)))

    def says(word):
        return lambda _: word in log_of(kubelet, "fed-superlink-0")

    def up(api):
        return {pod["metadata"]["name"] for pod in api.list("pods") if is_up(pod)}

    def logs():
        return log_of(kubelet, "fed-superlink-0") + log_of(kubelet, "fed-pool-0")

    assert wait_until(lambda api: "fed-superlink-0" in up(api), START_S), logs()
    assert wait_until(says("activate-node"), START_S), logs()
    pods.done(pods.patch(f"{STATEFUL_SETS}/fed-pool/scale", {"spec": {"replicas": 0}}, MERGE))
    assert wait_until(lambda api: len(api.list("pods")) == 1, START_S), logs()
    assert wait_until(says("unregister-node"), START_S), logs()
