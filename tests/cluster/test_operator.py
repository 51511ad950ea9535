"""The operator at an API server: Federations come, are scaled, drained, mended and taken away."""

import time
from pathlib import Path

import pytest
import yaml

from tests.cluster.clients import MERGE, Rest
from tests.cluster.faults import BROKEN, CONFLICT, TOO_MANY, LoseAnswer, Outrun
from tests.cluster.operators import (
    EVENTS,
    FEDERATIONS,
    POOLS,
    SETS,
    START_S,
    Operator,
    condition,
    federation,
    has_gone,
    holds,
    install,
    supernodes,
)
from tests.federation.federations import pool
from uncurtail.adapters.kubernetes_pool import secret_name
from uncurtail.operator.names import DRAIN_REQUESTED_AT, DRAINED

pytestmark = pytest.mark.timeout(180)
READS = frozenset({"get", "list", "watch"})


@pytest.fixture
def start(cluster, hollow, admin, tmp_path):
    """Installs what the chart brings and starts operators, which are gone after the test."""
    install(admin)
    started: list[Operator] = []

    def one(name="operator", *options) -> Operator:
        started.append(Operator(cluster, tmp_path, name, *options))
        return started[-1]

    yield one
    for operator in started:
        operator.stop()
        assert "Traceback" not in operator.said(), operator.said()


@pytest.fixture
def operator(start):
    return start()


def said_drained(admin, pod):
    notes = {"metadata": {"annotations": {DRAINED: "true"}}}
    admin.done(admin.patch(f"/api/v1/namespaces/ml/pods/{pod}", notes, MERGE))


def asked_to_leave(name):
    def look(api):
        found = [p["metadata"] for p in api.list("pods") if p["metadata"]["name"] == name]
        return any(DRAIN_REQUESTED_AT in (meta.get("annotations") or {}) for meta in found)

    return look


def writes(cluster, user="flower"):
    """What the operator asked the server to change, beside its lease."""
    return [
        (ask.verb, ask.resource, ask.subresource)
        for name, ask in list(cluster.server.requests)
        if name.endswith(f":{user}") and ask.verb not in READS and ask.resource != "leases"
    ]


def settled(cluster):
    """The writes up to when none has come for a while."""
    known = writes(cluster)
    while True:
        time.sleep(1.5)
        if known == (known := writes(cluster)):
            return known


def test_a_federation_comes_up_scales_drains_and_goes(cluster, admin, operator):
    admin.done(admin.post(FEDERATIONS, federation(pool(replicas=2))))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    assert cluster.wait_until(holds("Progressing", "False")), operator.said()
    assert len(supernodes(cluster.api)) == 2
    assert operator.get(operator.health, "/healthz")
    measured = operator.get(operator.metrics, "/metrics")
    assert 'uncurtail_pool_ready{federation="fed",namespace="ml",pool="gpu"} 2.0' in measured

    # down to none, through the scale subresource: drained first
    scale = f"{POOLS}/fed-supernode-gpu/scale"
    admin.done(admin.patch(scale, {"spec": {"replicas": 0}}, MERGE))
    for number in (0, 1):
        assert cluster.wait_until(asked_to_leave(f"fed-supernode-gpu-{number}")), operator.said()
    assert len(supernodes(cluster.api)) == 2, "nobody is stopped before it is done"
    said_drained(admin, "fed-supernode-gpu-1")
    assert cluster.wait_until(lambda api: supernodes(api) == ["fed-supernode-gpu-0"])
    said_drained(admin, "fed-supernode-gpu-0")
    assert cluster.wait_until(lambda api: supernodes(api) == [])
    admin.done(admin.patch(scale, {"spec": {"replicas": 1}}, MERGE))
    assert cluster.wait_until(lambda api: supernodes(api) == ["fed-supernode-gpu-0"])

    # away: the pool is drained first, here too
    admin.done(admin.delete(f"{FEDERATIONS}/fed"))
    assert cluster.wait_until(asked_to_leave("fed-supernode-gpu-0")), operator.said()
    assert not has_gone(cluster.api)
    said_drained(admin, "fed-supernode-gpu-0")
    assert cluster.wait_until(has_gone), operator.said()
    assert cluster.wait_until(lambda api: not api.list("pods") and not api.list("statefulsets"))
    reasons = {event["reason"] for event in admin.list(EVENTS)}
    assert {"Created", "AllReady", "Draining", "Scaled"} <= reasons


def test_an_invalid_spec_is_a_condition_and_an_event_and_touches_nothing(cluster, admin, operator):
    admin.done(admin.post(FEDERATIONS, federation()))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    uids = {p["metadata"]["uid"] for p in cluster.api.list("pods")}
    # what the schema cannot know: this version has no flags
    admin.done(admin.patch(f"{FEDERATIONS}/fed", {"spec": {"version": "1.36"}}, MERGE))
    assert cluster.wait_until(holds("Degraded")), operator.said()
    assert condition(cluster.api, "Degraded")["reason"] == "InvalidSpec"
    assert {p["metadata"]["uid"] for p in cluster.api.list("pods")} == uids
    assert cluster.wait_until(
        lambda api: "InvalidSpec" in {e["reason"] for e in api.list("events")}
    )
    assert operator.process.poll() is None
    admin.done(admin.patch(f"{FEDERATIONS}/fed", {"spec": {"version": "1.41"}}, MERGE))
    assert cluster.wait_until(holds("Degraded", "False")), operator.said()


def test_a_settled_federation_costs_no_call_and_an_edit_of_a_child_is_undone(
    cluster, admin, operator
):
    admin.done(admin.post(FEDERATIONS, federation()))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    assert cluster.wait_until(holds("Progressing", "False")), operator.said()
    before = writes(cluster)
    names = [verb for verb, resource, _ in before if resource == "statefulsets"]
    assert names == ["patch", "patch"], "each is written once"
    labels = {"metadata": {"labels": {"team": "ml"}}}
    admin.done(admin.patch(f"{FEDERATIONS}/fed", labels, MERGE))
    edited = {"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}
    admin.done(admin.patch(f"{SETS}/fed-superlink", edited, MERGE))

    def mended(api):
        sets = {s["metadata"]["name"]: s for s in api.list("statefulsets")}
        account = sets["fed-superlink"]["spec"]["template"]["spec"]["serviceAccountName"]
        return bool(account == "fed-superlink")

    assert cluster.wait_until(mended), operator.said()
    after = settled(cluster)
    changed = {resource for _, resource, _ in after[len(before) :]}
    assert changed == {"statefulsets", "federations", "events"}, "and nothing else was touched"
    # news that change nothing
    admin.done(admin.patch(f"{FEDERATIONS}/fed", {"metadata": {"labels": {"team": "x"}}}, MERGE))
    cluster.cut_watches()
    time.sleep(2.0)
    assert writes(cluster) == after


def test_calls_grow_with_what_changes_and_not_with_what_there_is(cluster, admin, operator):
    names = [f"f{number}" for number in range(12)]
    for name in names:
        admin.done(admin.post(FEDERATIONS, federation(pool(replicas=0), name=name)))
    for name in names:
        assert cluster.wait_until(holds("Ready", name=name), START_S), operator.said()
    before = len(settled(cluster))
    reads = [ask for _, ask in cluster.server.requests if ask.verb == "get"]
    admin.done(admin.patch(f"{POOLS}/f3-supernode-gpu/scale", {"spec": {"replicas": 1}}, MERGE))
    assert cluster.wait_until(lambda api: supernodes(api) == ["f3-supernode-gpu-0"])
    fresh = settled(cluster)[before:]
    # the scale, its events, and the statuses on the way to one ready pod
    assert fresh.count(("patch", "statefulsets", "")) == 1
    assert len(fresh) <= 10, fresh
    touched = {
        ask.name
        for name, ask in cluster.server.requests
        if name.endswith(":flower") and ask.resource == "federations" and ask.verb == "patch"
    }
    assert touched == {*names}
    again = [ask for _, ask in cluster.server.requests if ask.verb == "get"]
    assert {a.resource for a in again[len(reads) :]} <= {"leases"}, "what exists is not asked for"


def test_a_field_that_cannot_be_changed_makes_the_statefulset_anew_around_its_pods(
    cluster, admin, operator
):
    admin.done(admin.post(FEDERATIONS, federation()))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    first = {s["metadata"]["name"]: s["metadata"]["uid"] for s in cluster.api.list("statefulsets")}
    persist = {"spec": {"superlink": {"persistence": {"size": "1Gi"}}}}
    admin.done(admin.patch(f"{FEDERATIONS}/fed", persist, MERGE))

    def anew(api):
        sets = {s["metadata"]["name"]: s for s in api.list("statefulsets")}
        link = sets.get("fed-superlink")
        return link is not None and link["metadata"]["uid"] != first["fed-superlink"]

    assert cluster.wait_until(anew), operator.said()
    assert cluster.wait_until(holds("Ready")), operator.said()
    after = {s["metadata"]["name"]: s["metadata"]["uid"] for s in cluster.api.list("statefulsets")}
    assert after["fed-supernode-gpu"] == first["fed-supernode-gpu"]


def test_an_object_of_somebody_else_is_left_alone_and_named(cluster, admin, operator):
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "fed-supernode", "labels": {"whose": "theirs"}},
    }
    path = "/api/v1/namespaces/ml/serviceaccounts"
    admin.done(admin.post(path, account))
    admin.done(admin.post(FEDERATIONS, federation()))
    assert cluster.wait_until(holds("Degraded"), START_S), operator.said()
    assert "ServiceAccount fed-supernode" in condition(cluster.api, "Degraded")["message"]
    kept = admin.done(admin.get(f"{path}/fed-supernode"))["metadata"]
    assert kept["labels"] == {"whose": "theirs"}
    assert "ownerReferences" not in kept


FAULTS = {
    "conflict": lambda plan: plan(CONFLICT, after=1, times=2),
    "outrun": lambda plan: plan(Outrun(), verbs=frozenset({"patch"}), plural="federations"),
    "too-many": lambda plan: plan(TOO_MANY, after=3, times=2),
    "broken": lambda plan: plan(BROKEN, after=2, times=3),
    "answer-lost": lambda plan: plan(LoseAnswer(), after=2, times=3),
    "status": lambda plan: plan(BROKEN, plural="federations", subresource="status", times=2),
    "events": lambda plan: plan(BROKEN, plural="events", times=9),
    "lists": lambda plan: plan(BROKEN, verbs=frozenset({"list"}), plural="pods", times=2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_delays_a_federation_and_stops_nothing(cluster, admin, start, fault):
    FAULTS[fault](cluster.faults.plan)
    operator = start()
    admin.done(admin.post(FEDERATIONS, federation()))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    assert cluster.wait_until(holds("Degraded", "False")), operator.said()
    sets = [s["metadata"]["name"] for s in cluster.api.list("statefulsets")]
    assert sorted(sets) == ["fed-superlink", "fed-supernode-gpu"]


def test_broken_watches_old_versions_and_a_restart_of_the_server_are_survived(
    cluster, admin, operator
):
    admin.done(admin.post(FEDERATIONS, federation()))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    cluster.cut_watches()
    cluster.forget_history()
    cluster.restart_server()
    with Rest.of(cluster) as after:
        # gone while nobody could see it
        after.done(after.delete(f"{SETS}/fed-supernode-gpu"))
        whole = ["fed-superlink", "fed-supernode-gpu"]

        def back(api):
            return sorted(s["metadata"]["name"] for s in api.list("statefulsets")) == whole

        assert cluster.wait_until(back, 60), operator.said()
        scale = f"{POOLS}/fed-supernode-gpu/scale"
        after.done(after.patch(scale, {"spec": {"replicas": 3}}, MERGE))
        assert cluster.wait_until(lambda api: len(supernodes(api)) == 3, 60), operator.said()


def test_killed_in_the_middle_of_a_drain_another_operator_goes_on(cluster, admin, start):
    first, second = start("first"), start("second")
    admin.done(admin.post(FEDERATIONS, federation(pool(replicas=1))))
    assert cluster.wait_until(holds("Ready"), START_S), first.said()
    leader, other = (first, second) if "leads" in first.said() else (second, first)
    assert "leads" not in other.said()
    admin.done(admin.patch(f"{FEDERATIONS}/fed", {"spec": {"paused": True}}, MERGE))
    assert cluster.wait_until(asked_to_leave("fed-supernode-gpu-0")), leader.said()
    leader.kill()
    said_drained(admin, "fed-supernode-gpu-0")
    assert cluster.wait_until(lambda api: supernodes(api) == [], 60), other.said()
    assert "leads" in other.said()
    assert cluster.wait_until(holds("Paused")), other.said()


def test_the_example_whose_pools_are_sites_is_admitted_and_comes_up(cluster, admin, operator):
    path = Path(__file__).parents[2] / "deploy/sites.yaml"
    example = yaml.safe_load(path.read_text())
    example["metadata"]["namespace"] = "ml"
    admin.done(admin.post(FEDERATIONS, example))
    assert cluster.wait_until(holds("Ready", name="sites"), START_S), operator.said()
    sets = {s["metadata"]["name"]: s["spec"] for s in cluster.api.list("statefulsets")}
    pod = sets["sites-supernode-north"]["template"]["spec"]
    (container,) = pod["containers"]
    assert sets["sites-supernode-north"]["replicas"] == 0
    assert container["command"][2].startswith("exec uncurtail site join --stay")
    wanted = container["envFrom"][0]["secretRef"]["name"]
    assert wanted == secret_name("sites-supernode-north")
