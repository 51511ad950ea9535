"""Workloads on hollow nodes: sets of all kinds, the scheduler, Services and budgets."""

import pytest

from tests.cluster.clients import MERGE
from tests.cluster.controllers.nodes import add, node
from tests.cluster.controllers.pods import is_up
from tests.cluster.objects import dig, is_ending
from tests.cluster.samples import PODS, SERVICES, STATEFUL_SETS, service, workload

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
DAEMON_SETS = "/apis/apps/v1/namespaces/default/daemonsets"
NODES = "/api/v1/nodes"


def names(api):
    return sorted(pod["metadata"]["name"] for pod in api.list("pods"))


def up(api):
    return sorted(pod["metadata"]["name"] for pod in api.list("pods") if is_up(pod))


def status_is(plural, **wanted):
    def look(api):
        (thing,) = api.list(plural)
        status = thing.get("status", {})
        is_seen = status.get("observedGeneration") == thing["metadata"]["generation"]
        return is_seen and all(status.get(key) == value for key, value in wanted.items())

    return look


def appearances(cluster, kind):
    """The names of pods in the order in which they came, or went."""

    def read(api):
        return [
            change.key.name
            for change in api.store.changes
            if change.key.plural == "pods" and change.kind == kind
        ]

    return cluster.call(read)


class Unready:
    """Pods that a test keeps from being ready."""

    def __init__(self, *names):
        self.names = set(names)

    def __call__(self, pod):
        return pod["metadata"]["name"] not in self.names


def scale(admin, path, replicas):
    admin.done(admin.patch(f"{path}/scale", {"spec": {"replicas": replicas}}, MERGE))


def change_image(admin, path):
    image = {"name": "main", "image": "newer", "command": ["sleep", "60"]}
    template = {"spec": {"containers": [image]}}
    admin.done(admin.patch(path, {"spec": {"template": template}}, MERGE))


def test_ordinals_come_one_by_one_and_go_from_the_highest(cluster, hollow, admin):
    hollow.is_ready = Unready("db-1")
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db", replicas=3)))
    assert cluster.wait_until(lambda api: names(api) == ["db-0", "db-1"])
    assert not cluster.wait_until(lambda api: "db-2" in names(api), timeout_s=0.5)
    hollow.is_ready.names.clear()
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=3, updatedReplicas=3))
    scale(admin, f"{STATEFUL_SETS}/db", 0)
    assert cluster.wait_until(lambda api: names(api) == [])
    assert appearances(cluster, "ADDED") == ["db-0", "db-1", "db-2"]
    assert appearances(cluster, "DELETED") == ["db-2", "db-1", "db-0"]


def test_in_order_the_next_waits_until_the_one_before_has_gone(cluster, hollow, admin):
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db", replicas=3)))
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=3))
    hollow.may_end = Unready("db-2")
    scale(admin, f"{STATEFUL_SETS}/db", 0)

    def ending(api):
        return [p["metadata"]["name"] for p in api.list("pods") if is_ending(p)]

    assert cluster.wait_until(lambda api: ending(api) == ["db-2"])
    assert not cluster.wait_until(lambda api: ending(api) != ["db-2"], timeout_s=0.5)


def test_parallel_pods_wait_for_nobody(cluster, hollow, admin):
    hollow.is_ready = Unready("db-0", "db-1", "db-2")
    thing = workload("StatefulSet", "db", replicas=3, podManagementPolicy="Parallel")
    admin.done(admin.post(STATEFUL_SETS, thing))
    assert cluster.wait_until(lambda api: names(api) == ["db-0", "db-1", "db-2"])
    hollow.may_end = Unready("db-2", "db-1")
    scale(admin, f"{STATEFUL_SETS}/db", 1)
    assert cluster.wait_until(
        lambda api: [is_ending(pod) for pod in api.list("pods")] == [False, True, True]
    )


def test_claims_outlive_their_pods_and_are_found_again(cluster, hollow, admin):
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    thing = workload("StatefulSet", "db", replicas=2, volumeClaimTemplates=[claim])
    admin.done(admin.post(STATEFUL_SETS, thing))
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=2))
    path = "/api/v1/namespaces/default/persistentvolumeclaims"
    before = {c["metadata"]["name"]: c["metadata"]["uid"] for c in admin.list(path)}
    assert sorted(before) == ["data-db-0", "data-db-1"]
    scale(admin, f"{STATEFUL_SETS}/db", 1)
    assert cluster.wait_until(lambda api: names(api) == ["db-0"])
    scale(admin, f"{STATEFUL_SETS}/db", 2)
    assert cluster.wait_until(lambda api: up(api) == ["db-0", "db-1"])
    assert {c["metadata"]["name"]: c["metadata"]["uid"] for c in admin.list(path)} == before
    policy = {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}
    admin.done(admin.patch(f"{STATEFUL_SETS}/db", {"spec": policy}, MERGE))
    scale(admin, f"{STATEFUL_SETS}/db", 1)
    assert cluster.wait_until(lambda api: len(api.list("persistentvolumeclaims")) == 1)


def test_an_update_rolls_from_the_highest_down_to_the_partition(cluster, hollow, admin):
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db", replicas=3)))
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=3))
    path = f"{STATEFUL_SETS}/db"
    partition = {"updateStrategy": {"rollingUpdate": {"partition": 1}}}
    admin.done(admin.patch(path, {"spec": partition}, MERGE))
    change_image(admin, path)
    assert cluster.wait_until(status_is("statefulsets", updatedReplicas=2, readyReplicas=3))
    assert appearances(cluster, "DELETED") == ["db-2", "db-1"]
    images = [p["spec"]["containers"][0]["image"] for p in admin.list(PODS)]
    assert images == ["ground", "newer", "newer"]
    # a pod below the partition that is lost comes back as it was
    admin.done(admin.delete(f"{PODS}/db-0"))
    assert cluster.wait_until(status_is("statefulsets", updatedReplicas=2, readyReplicas=3))
    assert admin.list(PODS)[0]["spec"]["containers"][0]["image"] == "ground"


def test_a_set_whose_pods_are_refused_says_so(cluster, hollow, admin):
    thing = workload("StatefulSet", "d" * 62, replicas=1)
    admin.done(admin.post(STATEFUL_SETS, thing))
    assert cluster.wait_until(lambda api: bool(api.list("events")))
    (event,) = admin.list("/api/v1/namespaces/default/events")
    assert event["reason"] == "FailedCreate"
    assert "must be no more than 63 characters" in event["message"]


def test_a_daemon_runs_on_every_node_that_suits_and_comes_to_new_ones(cluster, hollow, admin):
    admin.done(admin.post(DAEMON_SETS, workload("DaemonSet", "agent")))
    assert cluster.wait_until(status_is("daemonsets", numberReady=2, desiredNumberScheduled=2))
    cluster.call(lambda api: add(api, node("gamma")))
    assert cluster.wait_until(status_is("daemonsets", numberReady=3))
    admin.done(admin.delete(f"{NODES}/alpha"))
    assert cluster.wait_until(status_is("daemonsets", desiredNumberScheduled=2, numberReady=2))
    selector = {"template": {"spec": {"nodeSelector": {"zone": "north"}}}}
    admin.done(admin.patch(f"{DAEMON_SETS}/agent", {"spec": selector}, MERGE))
    assert cluster.wait_until(status_is("daemonsets", numberReady=1, updatedNumberScheduled=1))
    (pod,) = admin.list(PODS)
    assert pod["spec"]["nodeName"] == "beta"


def test_a_deployment_rolls_without_too_few_pods(cluster, hollow, admin):
    admin.done(admin.post(DEPLOYMENTS, workload("Deployment", "web", replicas=4)))
    assert cluster.wait_until(status_is("deployments", availableReplicas=4))
    since = cluster.call(lambda api: api.store.revision)
    change_image(admin, f"{DEPLOYMENTS}/web")
    assert cluster.wait_until(
        status_is("deployments", updatedReplicas=4, replicas=4, availableReplicas=4)
    )

    def fewest(api):
        seen = [
            c.thing["status"]["availableReplicas"]
            for c in api.store.since(since)
            if c.key.plural == "deployments"
        ]
        return min(seen)

    assert cluster.call(fewest) >= 3
    assert {p["spec"]["containers"][0]["image"] for p in admin.list(PODS)} == {"newer"}


def test_a_cordoned_node_gets_no_new_pods(cluster, hollow, kubectl, admin):
    kubectl("cordon", "alpha")
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db", replicas=3)))
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=3))
    assert {pod["spec"]["nodeName"] for pod in admin.list(PODS)} == {"beta"}
    assert dig(admin.done(admin.get(f"{NODES}/alpha")), "spec.taints")
    kubectl("uncordon", "alpha")
    assert cluster.wait_until(lambda api: not dig(api.list("nodes")[0], "spec.taints"))


def test_a_node_is_drained_as_its_budgets_let_it(cluster, hollow, kubectl, admin):
    thing = workload("StatefulSet", "db", replicas=4, podManagementPolicy="Parallel")
    admin.done(admin.post(STATEFUL_SETS, thing))
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=4))
    budget = {"selector": {"matchLabels": {"app": "db"}}, "minAvailable": 4}
    path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    admin.done(admin.post(path, {"metadata": {"name": "db"}, "spec": budget}))
    told = kubectl("drain", "alpha", "--timeout=1s", fails=True)
    assert "violate the pod's disruption budget" in told
    admin.done(admin.patch(f"{path}/db", {"spec": {"minAvailable": 3}}, MERGE))
    assert "drained" in kubectl("drain", "alpha", "--timeout=30s")
    assert cluster.wait_until(status_is("statefulsets", readyReplicas=4))
    assert {pod["spec"]["nodeName"] for pod in admin.list(PODS)} == {"beta"}


def test_a_pod_waits_for_a_free_gpu(cluster, hollow, admin):
    cluster.call(lambda api: add(api, node("big", gpus=1)))
    thing = workload("StatefulSet", "db", replicas=2, podManagementPolicy="Parallel")
    container = thing["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"nvidia.com/gpu": 1}}
    admin.done(admin.post(STATEFUL_SETS, thing))
    assert cluster.wait_until(lambda api: up(api) == ["db-0"])
    waiting = admin.done(admin.get(f"{PODS}/db-1"))
    assert waiting["status"]["phase"] == "Pending"
    assert waiting["status"]["conditions"][0]["reason"] == "Unschedulable"
    cluster.call(lambda api: add(api, node("bigger", gpus=1)))
    assert cluster.wait_until(lambda api: up(api) == ["db-0", "db-1"])


def test_only_ready_pods_stand_behind_a_service(cluster, hollow, admin):
    hollow.is_ready = Unready("db-1")
    thing = workload("StatefulSet", "db", replicas=2, podManagementPolicy="Parallel")
    admin.done(admin.post(STATEFUL_SETS, thing))
    admin.done(admin.post(SERVICES, service("db")))

    def behind(api, kind):
        subsets = [s for e in api.list("endpoints") for s in e.get("subsets") or []]
        return [a["targetRef"]["name"] for s in subsets for a in s.get(kind) or []]

    assert cluster.wait_until(
        lambda api: (
            behind(api, "addresses") == ["db-0"] and behind(api, "notReadyAddresses") == ["db-1"]
        )
    )
    hollow.is_ready.names.clear()
    assert cluster.wait_until(lambda api: behind(api, "addresses") == ["db-0", "db-1"])


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        pytest.param({"minAvailable": 2}, 1, id="least"),
        pytest.param({"maxUnavailable": "34%"}, 2, id="share"),
        pytest.param({"maxUnavailable": 0}, 0, id="none"),
    ],
)
def test_a_budget_limits_evictions(cluster, hollow, admin, limit, allowed):
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db", replicas=3)))
    budget = {
        "metadata": {"name": "db"},
        "spec": {"selector": {"matchLabels": {"app": "db"}}, **limit},
    }
    path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    admin.done(admin.post(path, budget))
    assert cluster.wait_until(
        status_is("poddisruptionbudgets", disruptionsAllowed=allowed, currentHealthy=3)
    )
    hollow.may_end = Unready("db-0", "db-1", "db-2")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "db-0"}}
    codes = [admin.post(f"{PODS}/db-{n}/eviction", eviction).status_code for n in range(3)]
    assert codes == [201] * allowed + [429] * (3 - allowed)


def test_deleting_a_workload_takes_its_pods_and_rollouts_can_be_followed(cluster, hollow, kubectl):
    kubectl("apply", "-f", "-", sent=workload("StatefulSet", "db", replicas=2))
    kubectl("rollout", "status", "sts/db", "--timeout=15s")
    kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=db", "--timeout=10s")
    assert "1/1" in kubectl("get", "pods")
    kubectl("delete", "sts", "db", "--cascade=foreground", "--timeout=15s")
    assert cluster.call(names) == []
