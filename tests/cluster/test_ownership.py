"""Server-side apply: two managers share an object, and neither writes over the other unasked."""

from tests.cluster.clients import MERGE
from tests.cluster.samples import (
    CONFIG_MAPS,
    CRDS,
    STATEFUL_SETS,
    WIDGETS,
    config_map,
    widget,
    widget_crd,
    workload,
)

ONE = f"{CONFIG_MAPS}/one"


def test_apply_creates_merges_and_drops_what_is_no_longer_named(admin):
    assert admin.apply(ONE, config_map("one", a="1", b="2"), "us").status_code == 201
    admin.done(admin.apply(ONE, config_map("one", c="3"), "them"))
    after = admin.done(admin.apply(ONE, config_map("one", a="1"), "us"))
    assert after["data"] == {"a": "1", "c": "3"}


def test_another_managers_field_is_a_conflict_unless_forced(admin):
    admin.done(admin.apply(ONE, config_map("one", a="1"), "us"))
    answer = admin.apply(ONE, config_map("one", a="2"), "them")
    assert answer.status_code == 409
    cause = answer.json()["details"]["causes"][0]
    assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".data.a")
    assert 'conflict with "us"' in cause["message"]
    forced = admin.done(admin.apply(ONE, config_map("one", a="2"), "them", is_forced=True))
    assert forced["data"] == {"a": "2"}
    # who was forced out owns nothing: what he no longer names stays
    after = admin.done(admin.apply(ONE, config_map("one"), "us"))
    assert after["data"] == {"a": "2"}


def test_the_same_value_is_shared(admin):
    admin.done(admin.apply(ONE, config_map("one", a="1"), "us"))
    admin.done(admin.apply(ONE, config_map("one", a="1"), "them"))
    after = admin.done(admin.apply(ONE, config_map("one"), "us"))
    assert after["data"] == {"a": "1"}


def test_a_plain_write_takes_the_field_over(admin):
    admin.done(admin.apply(ONE, config_map("one", a="1"), "us"))
    admin.done(admin.patch(ONE, {"data": {"a": "2"}}, MERGE, fieldManager="hand"))
    answer = admin.apply(ONE, config_map("one", a="1"), "us")
    assert answer.status_code == 409
    assert 'conflict with "hand" using Update' in answer.json()["message"]


def test_an_autoscaler_keeps_the_replicas_that_apply_leaves_out(admin):
    thing = workload("StatefulSet", "db")
    path = f"{STATEFUL_SETS}/db"
    admin.done(admin.apply(path, thing, "operator"))
    admin.done(admin.patch(f"{path}/scale", {"spec": {"replicas": 4}}, MERGE))
    thing["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    after = admin.done(admin.apply(path, thing, "operator"))
    assert after["spec"]["replicas"] == 4
    assert after["spec"]["template"]["spec"]["containers"][0]["image"] == "other"


def test_items_with_keys_are_owned_one_by_one(admin):
    admin.done(admin.post(CRDS, widget_crd()))
    path = f"{WIDGETS}/one"
    admin.done(admin.apply(path, widget(parts=[{"name": "a"}, {"name": "b"}]), "us"))
    theirs = {**widget(), "spec": {"parts": [{"name": "c", "size": 5}]}}
    admin.done(admin.apply(path, theirs, "them"))
    after = admin.done(admin.apply(path, widget(parts=[{"name": "b"}]), "us"))
    assert [(p["name"], p["size"]) for p in after["spec"]["parts"]] == [("b", 1), ("c", 5)]


def test_apply_that_changes_nothing_keeps_the_version(admin):
    thing = workload("StatefulSet", "db")
    made = admin.done(admin.apply(f"{STATEFUL_SETS}/db", thing, "operator"))
    again = admin.done(admin.apply(f"{STATEFUL_SETS}/db", thing, "operator"))
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_apply_that_contradicts_an_immutable_field_is_refused(admin):
    admin.done(admin.apply(f"{STATEFUL_SETS}/db", workload("StatefulSet", "db"), "operator"))
    other = workload("StatefulSet", "db", podManagementPolicy="Parallel")
    assert admin.apply(f"{STATEFUL_SETS}/db", other, "operator", True).status_code == 422
