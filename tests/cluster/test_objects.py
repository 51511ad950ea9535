"""Objects change as they do in Kubernetes: versions, generations, status, patches, limits."""

import pytest

from tests.cluster.clients import JSON_PATCH, MERGE, STRATEGIC
from tests.cluster.samples import (
    CONFIG_MAPS,
    PODS,
    SERVICES,
    STATEFUL_SETS,
    config_map,
    pod_spec,
    service,
    workload,
)


def test_a_new_object_gets_its_identity(admin):
    made = admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db")))
    metadata = made["metadata"]
    assert metadata["uid"]
    assert metadata["creationTimestamp"]
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["generation"] == 1
    assert made["spec"]["podManagementPolicy"] == "OrderedReady"
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert admin.post(STATEFUL_SETS, workload("StatefulSet", "db")).status_code == 409


def test_only_a_change_of_the_spec_is_a_new_generation(admin):
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db")))
    path = f"{STATEFUL_SETS}/db"

    def generation(patch, part=""):
        answer = admin.done(admin.patch(path + part, patch, MERGE))
        return answer["metadata"]["generation"]

    assert generation({"metadata": {"labels": {"a": "b"}}}) == 1
    assert generation({"status": {"replicas": 1}}, "/status") == 1
    assert generation({"spec": {"replicas": 2}}) == 2
    assert generation({"spec": {"replicas": 2}}) == 2


def test_a_write_that_changes_nothing_keeps_the_version(admin):
    made = admin.done(admin.post(CONFIG_MAPS, config_map("one", a="1")))
    same = admin.done(admin.patch(f"{CONFIG_MAPS}/one", {"data": {"a": "1"}}, MERGE))
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_status_and_spec_are_written_apart(admin):
    thing = workload("StatefulSet", "db", replicas=2)
    made = admin.done(admin.post(STATEFUL_SETS, {**thing, "status": {"replicas": 9}}))
    assert made.get("status", {}).get("replicas") is None
    path = f"{STATEFUL_SETS}/db"
    both = {"spec": {"replicas": 5}, "status": {"replicas": 3}}
    after = admin.done(admin.patch(f"{path}/status", both, MERGE))
    assert (after["spec"]["replicas"], after["status"]["replicas"]) == (2, 3)
    both["status"]["replicas"] = 7
    after = admin.done(admin.patch(path, both, MERGE))
    assert (after["spec"]["replicas"], after["status"]["replicas"]) == (5, 3)


def test_an_old_version_is_a_conflict(admin):
    made = admin.done(admin.post(CONFIG_MAPS, config_map("one", a="1")))
    admin.done(admin.put(f"{CONFIG_MAPS}/one", {**made, "data": {"a": "2"}}))
    late = admin.put(f"{CONFIG_MAPS}/one", {**made, "data": {"a": "3"}})
    assert late.status_code == 409
    assert late.json()["reason"] == "Conflict"
    del made["metadata"]["resourceVersion"]
    admin.done(admin.put(f"{CONFIG_MAPS}/one", {**made, "data": {"a": "4"}}))


@pytest.mark.parametrize(
    ("path", "thing", "patch"),
    [
        pytest.param(
            STATEFUL_SETS, workload("StatefulSet", "x"), {"serviceName": "y"}, id="service"
        ),
        pytest.param(
            STATEFUL_SETS,
            workload("StatefulSet", "x"),
            {"podManagementPolicy": "Parallel"},
            id="pod-management",
        ),
        pytest.param(
            STATEFUL_SETS,
            workload("StatefulSet", "x"),
            {
                "volumeClaimTemplates": [
                    {"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
                ]
            },
            id="claims",
        ),
        pytest.param(
            "/apis/apps/v1/namespaces/default/daemonsets",
            workload("DaemonSet", "x"),
            {
                "selector": {"matchLabels": {"app": "x", "b": "c"}},
                "template": {"metadata": {"labels": {"b": "c"}}},
            },
            id="selector",
        ),
        pytest.param(SERVICES, service("x"), {"clusterIP": "10.96.9.9"}, id="cluster-ip"),
    ],
)
def test_what_is_fixed_stays(admin, path, thing, patch):
    admin.done(admin.post(path, thing))
    answer = admin.patch(f"{path}/x", {"spec": patch}, MERGE)
    assert answer.status_code == 422
    assert answer.json()["reason"] == "Invalid"


def test_a_service_keeps_its_address_when_it_is_replaced_without(admin):
    made = admin.done(admin.post(SERVICES, service("web")))
    assert made["spec"]["clusterIP"].startswith("10.96.")
    again = admin.done(admin.put(f"{SERVICES}/web", service("web", port=81)))
    assert again["spec"]["clusterIP"] == made["spec"]["clusterIP"]


@pytest.mark.parametrize(
    ("thing", "field"),
    [
        pytest.param(workload("StatefulSet", "x", replicaz=1), "replicaz", id="misspelt"),
        pytest.param(workload("StatefulSet", "x", replicas="1"), "spec.replicas", id="type"),
        pytest.param(
            workload("StatefulSet", "x", selector={"matchLabels": {"app": "y"}}),
            "does not match template",
            id="selector",
        ),
        pytest.param(workload("StatefulSet", "X_y"), "metadata.name", id="name"),
    ],
)
def test_a_built_in_object_that_is_not_valid_is_refused(admin, thing, field):
    answer = admin.post(STATEFUL_SETS, thing)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["message"]


def test_a_label_longer_than_63_characters_is_refused(admin):
    thing = config_map("one")
    thing["metadata"]["labels"] = {"a": "b" * 64}
    answer = admin.post(CONFIG_MAPS, thing)
    assert answer.status_code == 422
    assert answer.json()["details"]["causes"][0]["field"] == "metadata.labels"


def test_a_mount_needs_its_volume(admin):
    spec = pod_spec(["true"])
    spec["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    assert 'Not found: "data"' in admin.post(PODS, pod).json()["message"]


def test_a_strategic_patch_merges_named_items_and_a_merge_patch_replaces_lists(admin):
    admin.done(admin.post(STATEFUL_SETS, workload("StatefulSet", "db")))
    path = f"{STATEFUL_SETS}/db"
    sidecar = {"name": "side", "image": "ground"}
    patch = {"spec": {"template": {"spec": {"containers": [sidecar]}}}}

    def names(thing):
        return [c["name"] for c in thing["spec"]["template"]["spec"]["containers"]]

    assert names(admin.done(admin.patch(path, patch, STRATEGIC))) == ["main", "side"]
    sidecar["$patch"] = "delete"
    assert names(admin.done(admin.patch(path, patch, STRATEGIC))) == ["main"]
    del sidecar["$patch"]
    assert names(admin.done(admin.patch(path, patch, MERGE))) == ["side"]


def test_a_json_patch_whose_test_fails_changes_nothing(admin):
    admin.done(admin.post(CONFIG_MAPS, config_map("one", a="1")))
    operations = [
        {"op": "test", "path": "/data/a", "value": "2"},
        {"op": "replace", "path": "/data/a", "value": "3"},
    ]
    assert admin.patch(f"{CONFIG_MAPS}/one", operations, JSON_PATCH).status_code == 422
    assert admin.done(admin.get(f"{CONFIG_MAPS}/one"))["data"] == {"a": "1"}


def test_a_dry_run_is_checked_and_leaves_nothing(admin):
    admin.done(admin.post(CONFIG_MAPS, config_map("one"), dryRun="All"))
    assert admin.get(f"{CONFIG_MAPS}/one").status_code == 404


def test_objects_are_selected_by_labels_and_fields(admin):
    for name, tier in (("a", "front"), ("b", "back"), ("c", "")):
        thing = config_map(name)
        if tier:
            thing["metadata"]["labels"] = {"tier": tier}
        admin.done(admin.post(CONFIG_MAPS, thing))

    def names(**query):
        return [t["metadata"]["name"] for t in admin.list(CONFIG_MAPS, **query)]

    assert names(labelSelector="tier=front") == ["a"]
    assert names(labelSelector="tier in (front, back)") == ["a", "b"]
    assert names(labelSelector="tier!=front") == ["b", "c"]
    assert names(labelSelector="!tier") == ["c"]
    assert names(fieldSelector="metadata.name=b") == ["b"]
    assert admin.get(CONFIG_MAPS, fieldSelector="data.x=1").status_code == 400


def test_the_pages_of_a_list_show_one_moment(admin):
    for index in range(5):
        admin.done(admin.post(CONFIG_MAPS, config_map(f"m{index}")))
    first = admin.done(admin.get(CONFIG_MAPS, limit=2))
    assert first["metadata"]["remainingItemCount"] == 3
    admin.done(admin.delete(f"{CONFIG_MAPS}/m3"))
    token = first["metadata"]["continue"]
    rest = admin.done(admin.get(CONFIG_MAPS, limit=9, **{"continue": token}))
    assert [t["metadata"]["name"] for t in rest["items"]] == ["m2", "m3", "m4"]
    assert "continue" not in rest["metadata"]


def test_a_page_after_compaction_is_gone(cluster, admin):
    for index in range(3):
        admin.done(admin.post(CONFIG_MAPS, config_map(f"m{index}")))
    token = admin.done(admin.get(CONFIG_MAPS, limit=1))["metadata"]["continue"]
    cluster.call(lambda api: api.store.compact())
    late = admin.get(CONFIG_MAPS, **{"continue": token})
    assert (late.status_code, late.json()["reason"]) == (410, "Expired")


def test_an_object_needs_its_namespace(admin):
    answer = admin.post("/api/v1/namespaces/nowhere/configmaps", config_map("one"))
    assert answer.status_code == 404
    assert 'namespaces "nowhere" not found' in answer.json()["message"]
