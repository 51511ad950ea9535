"""kubectl, which nobody here wrote, finds its way around."""

import pytest

from tests.cluster.clients import Kubectl
from tests.cluster.samples import widget, widget_crd, workload


@pytest.fixture
def widgets(kubectl):
    kubectl("apply", "-f", "-", sent=widget_crd())
    return kubectl


def test_apply_get_and_delete(widgets):
    assert "created" in widgets("apply", "-f", "-", sent=widget(replicas=2))
    assert "unchanged" in widgets("apply", "-f", "-", sent=widget(replicas=2))
    assert "configured" in widgets("apply", "-f", "-", sent=widget(replicas=3))
    header, row = widgets("get", "wd").strip().splitlines()
    assert header.split() == ["NAME", "MODE", "PHASE", "AGE"]
    assert row.split()[:2] == ["one", "fast"]
    assert widgets("get", "widgets", "one", "-o", "jsonpath={.spec.replicas}") == "3"
    assert "deleted" in widgets("delete", "widget", "one")
    assert "NotFound" in widgets("get", "widget", "one", fails=True)


def test_a_field_that_is_unknown_is_refused_by_the_server(widgets):
    told = widgets("apply", "-f", "-", sent=widget(colour="red"), fails=True)
    assert 'unknown field "spec.colour"' in told


def test_what_is_not_valid_is_told_by_field(widgets):
    told = widgets("apply", "-f", "-", sent=widget(mode="odd"), fails=True)
    assert 'spec.mode: Unsupported value: "odd": supported values: "fast", "slow"' in told


def test_apply_of_a_workload_keeps_what_others_wrote(kubectl):
    thing = workload("StatefulSet", "db", replicas=1)
    kubectl("apply", "-f", "-", sent=thing)
    kubectl("label", "sts", "db", "extra=yes")
    thing["spec"]["replicas"] = 2
    kubectl("apply", "-f", "-", sent=thing)
    made = kubectl.json("get", "sts", "db")
    assert (made["spec"]["replicas"], made["metadata"]["labels"]) == (2, {"extra": "yes"})


def test_server_side_apply_and_its_conflicts(kubectl):
    thing = workload("StatefulSet", "db", replicas=1)
    kubectl("apply", "--server-side", "--field-manager=us", "-f", "-", sent=thing)
    thing["spec"]["replicas"] = 2
    apply = ("apply", "--server-side", "--field-manager=them", "-f", "-")
    assert "conflict with" in kubectl(*apply, sent=thing, fails=True)
    kubectl(*apply, "--force-conflicts", sent=thing)
    assert kubectl("get", "sts", "db", "-o", "jsonpath={.spec.replicas}") == "2"


def test_patch_scale_and_wait(widgets):
    widgets("apply", "-f", "-", sent=widget())
    widgets("scale", "widget/one", "--replicas=3")
    widgets("patch", "widget", "one", "--type=merge", "-p", '{"spec": {"limit": "5"}}')
    status = '{"status": {"phase": "Running"}}'
    widgets("patch", "widget", "one", "--subresource=status", "--type=merge", "-p", status)
    widgets("wait", "--for=jsonpath={.status.phase}=Running", "widget/one", "--timeout=10s")
    made = widgets.json("get", "widget", "one")
    assert (made["spec"]["replicas"], made["spec"]["limit"]) == (3, "5")


def test_a_service_account_is_told_what_it_may_not(cluster):
    token = cluster.service_account_token("default", "robot")
    robot = Kubectl.of(cluster, token, "robot")
    assert "Forbidden" in robot("get", "pods", fails=True)
