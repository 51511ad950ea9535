"""Kinds that come with a CRD: schema, defaults, pruning, CEL, scale."""

import pytest

from tests.cluster.clients import MERGE, STRATEGIC
from tests.cluster.samples import CRDS, WIDGETS, widget, widget_crd


@pytest.fixture
def widgets(admin):
    admin.done(admin.post(CRDS, widget_crd()))
    return admin


def test_a_kind_is_served_as_soon_as_its_definition_is_there_and_no_longer(widgets):
    widgets.done(widgets.post(WIDGETS, widget()))
    crd = widgets.done(widgets.get(f"{CRDS}/widgets.ground.example.org"))
    assert {c["type"] for c in crd["status"]["conditions"]} == {"NamesAccepted", "Established"}
    widgets.done(widgets.delete(f"{CRDS}/widgets.ground.example.org"))
    assert widgets.get(WIDGETS).status_code == 404
    widgets.done(widgets.post(CRDS, widget_crd()))
    assert widgets.list(WIDGETS) == []


def test_defaults_are_filled_in_and_unknown_fields_dropped(widgets):
    made = widgets.done(widgets.post(WIDGETS, widget(parts=[{"name": "a"}], colour="red")))
    assert made["spec"] == {"mode": "fast", "replicas": 1, "parts": [{"name": "a", "size": 1}]}


def test_an_unknown_field_is_an_error_where_the_client_is_strict(widgets):
    answer = widgets.post(WIDGETS, widget(colour="red"), fieldValidation="Strict")
    assert answer.status_code == 400
    assert 'unknown field "spec.colour"' in answer.json()["message"]


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        pytest.param({"mode": "odd"}, "spec.mode", "FieldValueNotSupported", id="enum"),
        pytest.param({"mode": None}, "spec.mode", "FieldValueTypeInvalid", id="null"),
        pytest.param({"replicas": -1}, "spec.replicas", "FieldValueInvalid", id="minimum"),
        pytest.param({"replicas": "1"}, "spec.replicas", "FieldValueTypeInvalid", id="type"),
        pytest.param({"replicas": True}, "spec.replicas", "FieldValueTypeInvalid", id="bool"),
        pytest.param(
            {"parts": [{"size": 1}]}, "spec.parts[0].name", "FieldValueRequired", id="required"
        ),
        pytest.param(
            {"parts": [{"name": "A"}]}, "spec.parts[0].name", "FieldValueInvalid", id="pattern"
        ),
        pytest.param(
            {"parts": [{"name": "a"}, {"name": "a"}]},
            "spec.parts[1]",
            "FieldValueDuplicate",
            id="duplicate-key",
        ),
        pytest.param(
            {"parts": [{"name": n} for n in "abcd"]}, "spec.parts", "FieldValueTooMany", id="many"
        ),
        pytest.param({"limit": 1.5}, "spec.limit", "FieldValueInvalid", id="int-or-string"),
        pytest.param(
            {"mode": "slow", "replicas": 3}, "spec", "FieldValueInvalid", id="rule-across-fields"
        ),
    ],
)
def test_an_object_that_its_schema_forbids_is_refused_by_field(widgets, spec, field, reason):
    answer = widgets.post(WIDGETS, widget(**spec))
    assert answer.status_code == 422, answer.text
    assert [(c["field"], c["reason"]) for c in answer.json()["details"]["causes"]] == [
        (field, reason)
    ]


def test_a_rule_tells_its_message(widgets):
    answer = widgets.post(WIDGETS, widget(mode="slow", replicas=3))
    assert "a slow widget has at most two replicas" in answer.json()["message"]


def test_a_rule_about_the_past_holds_from_the_first_update_on(widgets):
    widgets.done(widgets.post(WIDGETS, widget(owner="me")))
    answer = widgets.patch(f"{WIDGETS}/one", {"spec": {"owner": "you"}}, MERGE)
    assert (answer.status_code, "the owner is fixed" in answer.text) == (422, True)
    widgets.done(widgets.patch(f"{WIDGETS}/one", {"spec": {"owner": "me", "replicas": 2}}, MERGE))


def test_a_status_is_checked_too(widgets):
    widgets.done(widgets.post(WIDGETS, widget()))
    answer = widgets.patch(f"{WIDGETS}/one/status", {"status": {"replicas": "two"}}, MERGE)
    assert answer.status_code == 422


def test_custom_objects_take_no_strategic_patch(widgets):
    widgets.done(widgets.post(WIDGETS, widget()))
    answer = widgets.patch(f"{WIDGETS}/one", {"spec": {"replicas": 2}}, STRATEGIC)
    assert answer.status_code == 415


def test_a_custom_object_is_scaled(widgets):
    widgets.done(widgets.post(WIDGETS, widget()))
    widgets.done(
        widgets.patch(
            f"{WIDGETS}/one/status", {"status": {"replicas": 1, "selector": "a=b"}}, MERGE
        )
    )
    scale = widgets.done(widgets.get(f"{WIDGETS}/one/scale"))
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 1, "selector": "a=b"}
    widgets.done(widgets.put(f"{WIDGETS}/one/scale", {**scale, "spec": {"replicas": 2}}))
    made = widgets.done(widgets.get(f"{WIDGETS}/one"))
    assert (made["spec"]["replicas"], made["metadata"]["generation"]) == (2, 2)
    stale = widgets.put(f"{WIDGETS}/one/scale", {**scale, "spec": {"replicas": 1}})
    assert stale.status_code == 409


def test_a_definition_must_have_a_structural_schema(admin):
    crd = widget_crd()
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["type"]
    answer = admin.post(CRDS, crd)
    assert answer.status_code == 422
    assert "Required value" in answer.json()["message"]


def test_a_definition_with_a_rule_that_is_no_cel_is_refused(admin):
    crd = widget_crd()
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"][0]["rule"] = "self.mode =="
    answer = admin.post(CRDS, crd)
    assert answer.status_code == 422
    assert "x-kubernetes-validations" in answer.json()["message"]


def test_a_definition_without_a_spec_is_refused(admin):
    crd = widget_crd()
    del crd["spec"]
    assert admin.post(CRDS, crd).status_code == 422


def test_a_definition_is_named_after_its_kind(admin):
    crd = widget_crd()
    crd["metadata"]["name"] = "widget"
    assert admin.post(CRDS, crd).status_code == 422
