"""What a pod is to a run: starting, ready, over, in Kubernetes' own words."""

import pytest

from uncurtail.adapters.kubernetes import state_of
from uncurtail.core.nodes import NodeState

READY = {"name": "site", "ready": True, "restartCount": 0, "state": {"running": {}}}


def pod(phase="Running", *containers, ending=False, **status):
    meta = {"name": "p", **({"deletionTimestamp": "now"} if ending else {})}
    return {"metadata": meta, "status": {"phase": phase, "containerStatuses": containers, **status}}


def waiting(reason, restarts=0):
    state = {"waiting": {"reason": reason, "message": "so it is\nsaid"}}
    return {"name": "site", "ready": False, "restartCount": restarts, "state": state}


UNSCHEDULED = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes have nvidia.com/gpu",
}


@pytest.mark.parametrize(
    ("found", "state", "why"),
    [
        pytest.param(pod("Running", READY), NodeState.READY, "", id="ready"),
        pytest.param(pod("Running", READY, ending=True), NodeState.LEAVING, "", id="ending"),
        pytest.param(
            pod("Pending", waiting("ContainerCreating")), NodeState.STARTING, "", id="starting"
        ),
        pytest.param({"metadata": {"name": "p"}}, NodeState.STARTING, "", id="no-status"),
        pytest.param(
            pod("Pending", conditions=[UNSCHEDULED]),
            NodeState.STARTING,
            "Unschedulable: 0/3 nodes have nvidia.com/gpu",
            id="no-node",
        ),
        pytest.param(
            pod("Pending", waiting("ImagePullBackOff")),
            NodeState.STARTING,
            "ImagePullBackOff: so it is said",
            id="no-image",
        ),
        pytest.param(
            pod("Pending", waiting("CreateContainerConfigError")),
            NodeState.PARTIAL,
            "CreateContainerConfigError: so it is said",
            id="no-secret",
        ),
        pytest.param(
            pod("Running", READY | {"restartCount": 1}),
            NodeState.FAILED,
            "a container ended and was started again",
            id="started-again",
        ),
        pytest.param(
            pod("Running", waiting("CrashLoopBackOff", 3)),
            NodeState.FAILED,
            "CrashLoopBackOff: so it is said",
            id="crashing",
        ),
        pytest.param(
            pod("Failed", reason="Evicted", message="low on memory"),
            NodeState.FAILED,
            "Evicted: low on memory",
            id="evicted",
        ),
        pytest.param(
            pod("Succeeded", READY | {"ready": False}),
            NodeState.FAILED,
            "the pod has ended (Succeeded)",
            id="over",
        ),
    ],
)
def test_a_pod_is(found, state, why):
    assert state_of(found) == (state, why)
