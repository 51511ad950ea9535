"""The Helm chart: rendered it is valid, and it may do what plans do, and no more."""

import importlib.util
import re

import pytest
import yaml

from tests.charts import OPERATOR, RUN, helm, rendered
from tests.federation.federations import children, matrix

RELEASE = ("flower", "flower-system")
PLURALS = {
    "ServiceAccount": ("", "serviceaccounts"),
    "Service": ("", "services"),
    "StatefulSet": ("apps", "statefulsets"),
    "DaemonSet": ("apps", "daemonsets"),
    "PodDisruptionBudget": ("policy", "poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io", "networkpolicies"),
    "SuperNodePool": ("flwr.exalsius.ai", "supernodepools"),
}


def of(kind):
    (found,) = (each for each in rendered(OPERATOR, *RELEASE) if each["kind"] == kind)
    return found


def allowed():
    """(group, resource) to verbs."""
    verbs: dict[tuple[str, str], set[str]] = {}
    for rule in of("ClusterRole")["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                verbs.setdefault((group, resource), set()).update(rule["verbs"])
    return verbs


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate (of the extra test) is not installed",
)
def test_what_the_chart_installs_is_valid():
    import kubernetes_validate

    for document in rendered(OPERATOR, *RELEASE):
        kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("chart", [OPERATOR, RUN], ids=lambda path: path.name)
def test_helm_finds_nothing_wrong_with_a_chart(chart):
    assert "0 chart(s) failed" in helm("lint", "--strict", str(chart))


def test_every_value_is_used_and_every_used_value_is_given():
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text(encoding="utf-8"))
    text = "".join(path.read_text(encoding="utf-8") for path in (OPERATOR / "templates").iterdir())
    assert set(re.findall(r"\.Values\.(\w+)", text)) == set(values)


def test_the_operator_may_do_what_a_plan_may_ask_for():
    verbs = allowed()
    kinds = {ref.kind for _, federation in matrix() for ref in children(federation)}
    assert kinds == set(PLURALS)
    for kind in kinds:
        assert {"create", "patch", "delete", "list", "watch"} <= verbs[PLURALS[kind]], kind
    assert {"list", "watch", "delete"} <= verbs["apps", "deployments"]
    assert {"list", "watch", "patch", "delete"} <= verbs["", "pods"]
    assert "patch" in verbs["flwr.exalsius.ai", "federations/status"]
    assert "patch" in verbs["flwr.exalsius.ai", "supernodepools/status"]


def test_the_operator_may_do_no_more():
    verbs = allowed()
    made = {*PLURALS.values()}
    for (group, resource), may in verbs.items():
        assert "*" not in (group, resource, *may)
        assert resource not in ("secrets", "pods/exec", "pods/portforward", "nodes")
        if (group, resource) not in made and resource not in ("events", "deployments", "pods"):
            assert not may & {"create", "delete"}, resource
    assert not verbs["apps", "deployments"] & {"create", "patch", "update"}
    assert "create" not in verbs["", "pods"]


def test_the_operator_runs_without_privileges():
    spec = of("Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    ports = {port["name"] for port in container["ports"]}
    assert {
        container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")
    } <= (ports)
    assert {port["targetPort"] for port in of("Service")["spec"]["ports"]} <= ports


def test_the_services_and_the_deployment_select_the_same_pods():
    labels = of("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of("Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert of("Service")["spec"]["selector"].items() <= labels.items()
