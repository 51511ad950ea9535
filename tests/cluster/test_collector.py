"""What goes with what: finalizers, owners in the background and in the foreground, namespaces."""

from tests.cluster.clients import JSON_PATCH, MERGE
from tests.cluster.samples import CONFIG_MAPS, config_map

OWNER, CHILD = f"{CONFIG_MAPS}/owner", f"{CONFIG_MAPS}/child"


def family(admin):
    owner = admin.done(admin.post(CONFIG_MAPS, config_map("owner")))
    admin.done(admin.post(CONFIG_MAPS, config_map("child", owner)))
    admin.done(admin.post(CONFIG_MAPS, config_map("other")))


def names(api):
    return {thing["metadata"]["name"] for thing in api.list("configmaps")}


def test_dependents_go_after_their_owner(cluster, admin):
    family(admin)
    admin.done(admin.delete(OWNER))
    assert cluster.wait_until(lambda api: names(api) == {"other"})


def test_in_the_foreground_the_owner_goes_last(cluster, admin):
    family(admin)
    held = {"metadata": {"finalizers": ["ground.example.org/hold"]}}
    admin.done(admin.patch(CHILD, held, MERGE))
    gone = admin.done(admin.delete(OWNER, propagationPolicy="Foreground"))
    assert gone["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert cluster.wait_until(
        lambda api: any(
            "deletionTimestamp" in t["metadata"] and t["metadata"]["name"] == "child"
            for t in api.list("configmaps")
        )
    )
    assert admin.get(OWNER).status_code == 200
    admin.done(admin.patch(CHILD, {"metadata": {"finalizers": None}}, MERGE))
    assert cluster.wait_until(lambda api: names(api) == {"other"})


def test_orphans_stay_and_forget_their_owner(cluster, admin):
    family(admin)
    admin.done(admin.delete(OWNER, propagationPolicy="Orphan"))
    assert cluster.wait_until(lambda api: names(api) == {"child", "other"})
    assert not admin.done(admin.get(CHILD))["metadata"].get("ownerReferences")


def test_a_dependent_of_an_owner_that_is_gone_goes_at_once(cluster, admin):
    owner = admin.done(admin.post(CONFIG_MAPS, config_map("owner")))
    admin.done(admin.delete(OWNER))
    admin.done(admin.post(CONFIG_MAPS, config_map("child", owner)))
    assert cluster.wait_until(lambda api: names(api) == set())


def test_an_owner_of_the_same_name_is_not_the_same_owner(cluster, admin):
    family(admin)
    admin.done(admin.delete(OWNER))
    admin.done(admin.post(CONFIG_MAPS, config_map("owner")))
    assert cluster.wait_until(lambda api: names(api) == {"owner", "other"})


def test_a_finalizer_keeps_an_object_until_it_is_taken_away(admin):
    thing = config_map("one")
    thing["metadata"]["finalizers"] = ["ground.example.org/hold"]
    admin.done(admin.post(CONFIG_MAPS, thing))
    path = f"{CONFIG_MAPS}/one"
    admin.done(admin.delete(path))
    kept = admin.done(admin.get(path))
    assert "deletionTimestamp" in kept["metadata"]
    more = {"metadata": {"finalizers": ["ground.example.org/hold", "ground.example.org/more"]}}
    assert admin.patch(path, more, MERGE).status_code == 422
    admin.done(admin.patch(path, [{"op": "remove", "path": "/metadata/finalizers/0"}], JSON_PATCH))
    assert admin.get(path).status_code == 404


def test_a_namespace_takes_its_content_with_it(cluster, admin):
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}
    admin.done(admin.post("/api/v1/namespaces", space))
    held = config_map("held")
    held["metadata"]["finalizers"] = ["ground.example.org/hold"]
    path = "/api/v1/namespaces/lab/configmaps"
    admin.done(admin.post(path, held))
    admin.done(admin.delete("/api/v1/namespaces/lab"))
    assert admin.post(path, config_map("late")).status_code == 403
    assert admin.get("/api/v1/namespaces/lab").json()["status"]["phase"] == "Terminating"
    admin.done(admin.patch(f"{path}/held", {"metadata": {"finalizers": None}}, MERGE))
    assert cluster.wait_until(
        lambda api: all(n["metadata"]["name"] != "lab" for n in api.list("namespaces"))
    )
