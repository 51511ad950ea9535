"""Every object that the operator makes is one that Kubernetes itself would take."""

import importlib.util

import pytest

from tests.federation.federations import children, matrix

missing = importlib.util.find_spec("kubernetes_validate") is None
pytestmark = pytest.mark.skipif(missing, reason="kubernetes-validate is not installed")
FEDERATIONS = dict(matrix())
OURS = ("SuperNodePool",)
# All of them by the newest schemas; every seventh by those of 2023.
VERSIONS = {"1.37": 1, "1.29": 7}


def validate(child, version):
    import kubernetes_validate

    kubernetes_validate.validate(child, version, strict=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("version", "every"), VERSIONS.items())
def test_every_child_of_a_broad_matrix_is_valid(version, every):
    seen: dict[str, int] = {}
    checked: set[str] = set()
    for federation in list(FEDERATIONS.values())[::every]:
        for ref, child in children(federation).items():
            if ref.kind in OURS or repr(child) in checked:
                continue
            validate(child, version)
            checked.add(repr(child))
            seen[ref.kind] = seen.get(ref.kind, 0) + 1
    assert set(seen) == {
        "ServiceAccount",
        "NetworkPolicy",
        "Service",
        "PodDisruptionBudget",
        "StatefulSet",
        "DaemonSet",
    }
    assert min(seen["StatefulSet"], seen["DaemonSet"]) > 100 / every


def test_a_misspelt_field_would_be_noticed():
    import kubernetes_validate

    (workload,) = (
        child
        for ref, child in children(next(iter(FEDERATIONS.values()))).items()
        if ref.name == "fed-supernode-gpu" and ref.kind == "StatefulSet"
    )
    workload["spec"]["template"]["spec"]["containers"][0]["imagez"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagez"):
        validate(workload, "1.37")
