"""The shipped CRDs and what a Federation becomes, by kubectl, against the cluster of the tests."""

import json
from pathlib import Path

import pytest

from tests.federation.federations import children, manifest, matrix
from tests.federation.test_crd import REFUSED
from uncurtail.deploy.text import as_yaml
from uncurtail.operator.diff import Change, change

CRDS = Path(__file__).parents[2] / "deploy/helm/uncurtail-operator/crds/crds.yaml"
SOME = dict(list(matrix())[::45])


def sent(federation):
    """As a user writes it: the server gives it the rest."""
    name = federation["metadata"]["name"]
    return {**federation, "metadata": {"name": name, "namespace": "ml"}}


@pytest.fixture
def flower(kubectl):
    kubectl("apply", "--server-side", "-f", str(CRDS))
    kubectl(
        "apply",
        "-f",
        "-",
        sent={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}},
    )
    return kubectl


@pytest.mark.parametrize("federation", SOME.values(), ids=SOME)
def test_every_child_is_taken_and_what_the_server_made_of_it_is_no_difference(
    flower, federation, tmp_path
):
    flower("apply", "-f", "-", sent=sent(federation))
    live = json.loads(flower("get", "fedf", "fed", "-n", "ml", "-o", "json"))
    wanted = children(live)
    everything = tmp_path / "children.yaml"
    everything.write_text(as_yaml(list(wanted.values())), encoding="utf-8")
    flower("apply", "--server-side", "-f", str(everything))
    kinds = ",".join({ref.kind for ref in wanted})
    found = json.loads(flower("get", kinds, "-n", "ml", "-o", "json"))["items"]
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in found}
    for ref, child in wanted.items():
        assert change(child, by_name[ref.kind, ref.name]) is Change.NONE, ref


@pytest.mark.parametrize("federation", REFUSED.values(), ids=REFUSED)
def test_what_may_not_be_is_refused(flower, federation):
    told = flower("apply", "-f", "-", sent=sent(federation), fails=True)
    assert "is invalid" in told or "unknown field" in told


def test_a_pool_is_scaled_by_kubectl(flower):
    flower("apply", "-f", "-", sent=sent(manifest()))
    live = json.loads(flower("get", "fedf", "fed", "-n", "ml", "-o", "json"))
    (scale,) = (child for ref, child in children(live).items() if ref.kind == "SuperNodePool")
    flower("apply", "--server-side", "-f", "-", sent=scale)
    flower("scale", "supernodepool", "fed-supernode-gpu", "--replicas", "0", "-n", "ml")
    header, row = flower("get", "snp", "-n", "ml").strip().splitlines()
    assert header.split() == ["NAME", "FEDERATION", "POOL", "DESIRED", "READY", "PHASE", "AGE"]
    assert row.split()[:4] == ["fed-supernode-gpu", "fed", "gpu", "0"]
