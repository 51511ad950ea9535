"""A plan leads from what exists to what is wanted, and nothing is stopped before its time."""

import copy

import pytest

from tests.federation.fakecluster import FakeCluster
from tests.federation.federations import VOLUMES, children, manifest, pool
from uncurtail.operator.actions import Annotate, Create, Delete, Scale, Update
from uncurtail.operator.names import DRAIN_REQUESTED_AT
from uncurtail.operator.observed import Observed, Ref, abandoned, ref_of
from uncurtail.operator.plan import plan
from uncurtail.operator.spec import Federation

NODES = Ref("StatefulSet", "fed-supernode-gpu")
DAEMONS = Ref("DaemonSet", "fed-supernode-gpu")
LINK = Ref("StatefulSet", "fed-superlink")
SCALE = Ref("SuperNodePool", "fed-supernode-gpu")
NOW = 1_800_000_000.0


def running(federation=None, nodes=2) -> FakeCluster:
    cluster = FakeCluster(nodes)
    cluster.settle(federation or manifest())
    cluster.actions.clear()
    cluster.events.clear()
    return cluster


def kinds(plan_or_actions) -> list[str]:
    return [type(action).__name__ for action in plan_or_actions]


def deleted(federation):
    return {
        **federation,
        "metadata": {**federation["metadata"], "deletionTimestamp": "2027-01-01T00:00:00Z"},
    }


def reasons(cluster) -> list[str]:
    return [event.reason for event in cluster.events]


def test_a_new_federation_is_made_in_order_and_only_once():
    cluster = FakeCluster()
    first = cluster.reconcile(manifest()).plan
    made = [ref_of(action.manifest) for action in first.actions if isinstance(action, Create)]
    assert made == list(children(manifest()))
    assert set(kinds(first.actions)) == {"Create"}
    cluster.settle(manifest())
    assert cluster.reconcile(manifest()).plan.actions == ()
    assert cluster.condition("Ready") == "True"
    assert cluster.status["supernodes"] == "2/2"
    assert cluster.status["endpoints"]["superlinkService"] == "fed-superlink.ml.svc:9093"


def test_a_plan_is_the_same_for_the_same_facts():
    observed = running().observe(manifest())
    changed = manifest(pool(replicas=1), nodes={"image": "new"})
    assert plan(changed, observed, NOW) == plan(changed, observed, NOW)


def test_scaling_down_tells_the_pods_and_waits():
    cluster = running(manifest(pool(replicas=3)))
    smaller = manifest(pool(replicas=1))
    outcome = cluster.reconcile(smaller)
    told = [a.pod for a in cluster.actions if isinstance(a, Annotate)]
    assert told == ["fed-supernode-gpu-1", "fed-supernode-gpu-2"]
    assert not any(isinstance(a, Scale) for a in cluster.actions)
    assert outcome.plan.wake_s == 60.0
    assert cluster.condition("Draining") == "True"
    assert cluster.status["pools"][0]["phase"] == "Draining"
    cluster.now += 59.0
    assert not any(isinstance(a, Scale) for a in cluster.reconcile(smaller).plan.actions)
    cluster.now += 1.0
    cluster.settle(smaller)
    assert cluster.pod_names() == ["fed-supernode-gpu-0"]
    assert reasons(cluster)[:1] == ["Updated"]
    assert "Draining" in reasons(cluster)


def test_pods_that_are_done_go_at_once_but_only_from_the_top():
    cluster = running(manifest(pool(replicas=4)))
    smaller = manifest(pool(replicas=1))
    cluster.reconcile(smaller)
    cluster.say_drained("fed-supernode-gpu-1")
    cluster.now += 1.0
    cluster.reconcile(smaller)
    assert len(cluster.pod_names()) == 4, "a StatefulSet cannot end one in the middle"
    cluster.say_drained("fed-supernode-gpu-3")
    cluster.now += 1.0
    cluster.reconcile(smaller)
    assert cluster.ended == [("fed-supernode-gpu-3", "drained")]
    cluster.say_drained("fed-supernode-gpu-2")
    cluster.reconcile(smaller)
    assert cluster.pod_names() == ["fed-supernode-gpu-0"]


def test_who_may_stay_after_all_is_told():
    cluster = running(manifest(pool(replicas=2)))
    cluster.reconcile(manifest(pool(replicas=0)))
    cluster.say_drained("fed-supernode-gpu-1")
    cluster.now += 5.0
    cluster.settle(manifest(pool(replicas=2)))
    assert cluster.ended == []
    assert not any(pod["metadata"].get("annotations") for pod in cluster.pods.values())
    assert "DrainCancelled" in reasons(cluster)


def test_without_notice_a_pool_scales_at_once():
    cluster = running(manifest(pool(replicas=3), drain={"timeoutSeconds": 0}))
    cluster.reconcile(manifest(pool(replicas=1), drain={"timeoutSeconds": 0}))
    assert len(cluster.pod_names()) == 1
    assert not any(isinstance(action, Annotate) for action in cluster.actions)


def test_a_pool_scales_up_at_once():
    cluster = running()
    cluster.reconcile(manifest(pool(replicas=5)))
    assert len(cluster.pod_names()) == 5


@pytest.mark.parametrize("where", ["federation", "pool"])
def test_a_paused_pool_drains_and_comes_back_as_it_was(where):
    cluster = running()
    cluster.scale(SCALE.name, 3)
    cluster.settle(manifest())
    paused = manifest(paused=True) if where == "federation" else manifest(pool(paused=True))
    cluster.settle(paused)
    assert cluster.pod_names() == []
    assert {how for _, how in cluster.ended} == {"told 60 s ago"}
    assert cluster.condition("Paused") == cluster.condition("Ready") == "True"
    assert cluster.status["pools"][0]["phase"] == "Paused"
    assert cluster.objects[LINK]["spec"]["replicas"] == 1, "the SuperLink holds the run"
    cluster.settle(manifest())
    assert len(cluster.pod_names()) == 3


def test_a_paused_daemonset_is_drained_and_taken_away():
    federation = manifest(mode="DaemonSet")
    cluster = running(federation, nodes=3)
    cluster.settle(manifest(mode="DaemonSet", paused=True))
    assert DAEMONS not in cluster.objects
    assert {how for _, how in cluster.ended} == {"told 60 s ago"}
    cluster.settle(federation)
    assert len(cluster.pod_names()) == 3


def test_a_removed_pool_is_drained_before_it_goes():
    cluster = running(manifest(pool("gpu"), pool("cpu")))
    cluster.settle(manifest(pool("gpu")))
    assert {name for name, _ in cluster.ended} == {"fed-supernode-cpu-0", "fed-supernode-cpu-1"}
    assert {how for _, how in cluster.ended} == {"told 60 s ago"}
    assert set(cluster.objects) == set(children(manifest(pool("gpu"))))


def test_a_pool_that_comes_back_while_it_leaves_stays():
    both = manifest(pool("gpu"), pool("cpu"))
    cluster = running(both)
    cluster.reconcile(manifest(pool("gpu")))
    cluster.now += 10.0
    cluster.settle(both)
    assert cluster.ended == []


def test_a_fixed_field_that_changes_in_mid_drain_ends_nobody_early():
    cluster = running(manifest(pool(replicas=3)))
    changed = manifest(pool(replicas=1, **VOLUMES["claims"]))
    cluster.reconcile(manifest(pool(replicas=1)))
    cluster.now += 10.0
    for _ in range(4):
        cluster.reconcile(changed)
    assert len(cluster.pod_names()) == 3
    cluster.settle(changed)
    assert {how for _, how in cluster.ended} == {"told 60 s ago"}
    assert cluster.pod_names() == ["fed-supernode-gpu-0"]


def between_two_statefulsets() -> FakeCluster:
    """The old one is deleted without its pods, the new one is not made yet."""
    cluster = running()
    cluster.reconcile(manifest(pool(**VOLUMES["claims"])))
    assert NODES not in cluster.objects
    assert len(cluster.pod_names()) == 2
    return cluster


@pytest.mark.parametrize(
    "later",
    [manifest(mode="DaemonSet"), manifest(pool("cpu")), deleted(manifest())],
    ids=["other-kind", "pool-removed", "deleted"],
)
def test_pods_that_their_statefulset_left_are_drained_and_not_forgotten(later):
    cluster = between_two_statefulsets()
    for _ in range(10):
        outcome = cluster.reconcile(later)
        cluster.now += outcome.plan.wake_s if outcome.plan.wake_s < 300.0 else 1.0
    assert sorted(cluster.ended) == [
        ("fed-supernode-gpu-0", "told 60 s ago"),
        ("fed-supernode-gpu-1", "told 60 s ago"),
    ]
    assert outcome.plan.finished == ("deletionTimestamp" in later["metadata"])
    assert cluster.most_kinds_at_once == 1


def test_a_pod_of_somebody_else_is_never_deleted():
    cluster = running()
    pod = cluster.pods["fed-supernode-gpu-1"]
    pod["metadata"]["ownerReferences"] = []
    pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "somebody"
    observed = cluster.observe(manifest(pool("cpu")))
    assert abandoned(observed.pods, Federation.of(manifest(pool("cpu"))), ()) == {}


def test_an_update_leaves_the_scale_alone():
    cluster = running(manifest(pool(replicas=3)))
    cluster.reconcile(manifest(pool(replicas=1), nodes={"image": "new"}))
    (update,) = (
        a.manifest
        for a in cluster.actions
        if isinstance(a, Update) and a.manifest["kind"] == "StatefulSet"
    )
    assert update["spec"]["replicas"] == 3


@pytest.mark.parametrize("broken", [{"mode": "Nope"}, {"version": "1.36.0"}], ids=["model", "rule"])
def test_a_spec_that_cannot_be_built_changes_nothing_and_says_why(broken):
    cluster = running()
    bad = manifest(pool(replicas=9), **broken)
    assert cluster.reconcile(bad).plan.actions == ()
    assert (cluster.condition("Degraded"), cluster.condition("Ready")) == ("True", "False")
    assert next(iter(broken)) in cluster.message("Degraded")
    assert cluster.status["supernodes"] == "2/2", "what was known is kept"
    said = list(cluster.events)
    cluster.reconcile(bad)
    assert cluster.events == said, "once is enough"
    cluster.settle(manifest(pool(replicas=9)))
    assert (cluster.condition("Degraded"), cluster.condition("Ready")) == ("False", "True")


def test_an_index_on_a_daemonset_is_said_and_not_tried_for_ever():
    federation = manifest(pool(nodeConfig={"partition-id": "{index}"}), mode="DaemonSet")
    done = plan(federation, Observed(), NOW)
    assert done.actions == ()
    assert "{index}" in done.status["conditions"][0]["message"]


@pytest.mark.parametrize("ref", [NODES, LINK, Ref("Service", "fed-superlink")], ids=str)
def test_another_ones_object_is_never_touched(ref):
    cluster = FakeCluster()
    cluster.add(ref.kind, ref.name, owned=False)
    before = copy.deepcopy(cluster.objects[ref]["spec"])
    for _ in range(3):
        cluster.reconcile(manifest())
    assert cluster.condition("Degraded") == "True"
    assert str(ref) in cluster.message("Degraded")
    assert cluster.objects[ref]["spec"] == before
    assert not any(isinstance(action, Delete) for action in cluster.actions)


def test_a_workload_of_the_other_kind_leaves_and_the_wanted_one_is_not_disturbed():
    cluster = running()
    labels = {"app.kubernetes.io/instance": "fed", "flower.flwr.ai/pool": "gpu"}
    cluster.add("DaemonSet", DAEMONS.name, labels=labels)
    cluster.settle(manifest())
    assert DAEMONS not in cluster.objects
    told = {action.pod for action in cluster.actions if isinstance(action, Annotate)}
    assert told == {"fed-supernode-gpu-n0x", "fed-supernode-gpu-n1x"}
    assert {how for _, how in cluster.ended} == {"told 60 s ago"}
    assert cluster.pod_names() == ["fed-supernode-gpu-0", "fed-supernode-gpu-1"]


def test_what_somebody_edits_is_put_back():
    cluster = running()
    template = cluster.objects[NODES]["spec"]["template"]
    template["spec"]["containers"][0]["image"] = "mine"
    cluster.settle(manifest())
    template = cluster.objects[NODES]["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "flwr/supernode:1.41.0"
    assert any("repaired" in event.message for event in cluster.events)


def test_a_superlink_that_was_scaled_away_comes_back():
    cluster = running()
    cluster.objects[LINK]["spec"]["replicas"] = 0
    cluster.settle(manifest())
    assert cluster.objects[LINK]["spec"]["replicas"] == 1


def test_a_scale_that_was_deleted_is_made_again_as_the_federation_says():
    cluster = running()
    cluster.scale(SCALE.name, 4)
    cluster.settle(manifest())
    del cluster.objects[SCALE]
    cluster.settle(manifest())
    assert cluster.objects[SCALE]["spec"]["replicas"] == 2
    assert len(cluster.pod_names()) == 2


def test_an_autoscaler_reads_what_it_needs():
    cluster = running()
    status = cluster.objects[SCALE]["status"]
    assert (status["replicas"], status["readyReplicas"]) == (2, 2)
    selector = dict(pair.split("=") for pair in status["selector"].split(","))
    assert selector == cluster.objects[NODES]["spec"]["selector"]["matchLabels"]


def test_a_federation_that_is_deleted_drains_first():
    cluster = running(manifest(pool("gpu"), pool("cpu")))
    ending = deleted(manifest(pool("gpu"), pool("cpu")))
    outcome = cluster.reconcile(ending)
    assert not outcome.plan.finished
    assert kinds(outcome.plan.actions) == ["Annotate"] * 4
    cluster.now += 60.0
    outcome = cluster.reconcile(ending)
    assert kinds(outcome.plan.actions) == ["Delete"] * 2
    assert cluster.reconcile(ending).plan.finished
    assert cluster.pod_names() == []


def test_a_deleted_federation_that_cannot_be_read_is_let_go():
    assert plan(deleted(manifest(mode="Nope")), Observed(), NOW).finished


def test_a_deletion_names_the_very_object():
    cluster = running()
    paused = manifest(mode="DaemonSet")
    cluster.settle(paused)
    (gone,) = (a for a in cluster.actions if isinstance(a, Delete) and a.ref == NODES)
    assert (gone.uid != "", gone.propagation) == (True, "Foreground")


def test_conditions_keep_the_time_of_their_last_change():
    cluster = running()
    since = {c["type"]: c["lastTransitionTime"] for c in cluster.status["conditions"]}
    cluster.now += 500.0
    cluster.reconcile(manifest())
    assert {c["type"]: c["lastTransitionTime"] for c in cluster.status["conditions"]} == since


def test_a_warning_is_posted_once_and_stays_in_the_status():
    template = {"spec": {"containers": [{"name": "dummy", "image": "x"}]}}
    federation = manifest(pool(podTemplate=template))
    cluster = FakeCluster()
    cluster.settle(federation)
    assert reasons(cluster).count("NoEffect") == 1
    assert len(cluster.status["warnings"]) == 1


def test_a_conflict_is_no_ones_fault():
    cluster = running()
    cluster.refuse = "conflict"
    outcome = cluster.reconcile(manifest(pool(replicas=5)))
    assert outcome.failure == "update SuperNodePool fed-supernode-gpu: conflict"
    assert cluster.condition("Degraded") == "False"


def test_the_time_of_a_mark_is_the_time_of_the_plan():
    cluster = running()
    cluster.now = NOW + 7.0
    cluster.reconcile(manifest(pool(replicas=1)))
    (mark,) = (a for a in cluster.actions if isinstance(a, Annotate))
    assert (mark.key, mark.value) == (DRAIN_REQUESTED_AT, "2027-01-15T08:00:07Z")


@pytest.mark.parametrize("carried_out", range(6))
def test_events_tell_what_was_carried_out_and_nothing_else(carried_out):
    cluster = running(manifest(pool(replicas=2)))
    larger = manifest(pool(replicas=5), nodes={"image": "new"})
    cluster.fail_after = carried_out
    cluster.reconcile(larger)

    def done(kind) -> int:
        return sum(isinstance(action, kind) for action in cluster.actions)

    assert len(cluster.actions) <= carried_out
    assert reasons(cluster).count("Scaled") == done(Scale)
    assert reasons(cluster).count("Updated") == done(Update)
    cluster.fail_after = None
    cluster.settle(larger)
    assert (reasons(cluster).count("Scaled"), done(Scale)) == (1, 1)
    assert reasons(cluster).count("Updated") == done(Update)


@pytest.mark.parametrize("carried_out", range(4))
def test_a_drain_is_told_once_all_its_pods_have_been(carried_out):
    cluster = running(manifest(pool(replicas=3)))
    cluster.fail_after = carried_out
    cluster.reconcile(manifest(pool(replicas=1)))
    told = sum(isinstance(action, Annotate) for action in cluster.actions)
    assert ("Draining" in reasons(cluster)) == (told == 2)
