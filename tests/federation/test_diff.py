"""An object is left alone unless it was asked for differently, or somebody changed it."""

import copy

import pytest

from tests.federation.fakecluster import stored
from tests.federation.federations import VOLUMES, children, manifest, matrix, pool
from uncurtail.operator.diff import Change, change, covers, quantity
from uncurtail.operator.observed import Ref

NODES = Ref("StatefulSet", "fed-supernode-gpu")
LINK = Ref("StatefulSet", "fed-superlink")
SERVICE = Ref("Service", "fed-superlink")


def test_what_the_api_server_made_of_our_object_is_no_difference():
    for name, federation in matrix():
        for ref, child in children(federation).items():
            assert change(child, stored(child)) is Change.NONE, (name, ref)


@pytest.mark.parametrize(
    ("changed", "ref", "decided"),
    [
        (manifest(pool(replicas=9)), NODES, Change.NONE),
        (manifest(nodes={"image": "other"}), NODES, Change.UPDATE),
        (manifest(pool(**VOLUMES["claims"])), NODES, Change.ORPHAN),
        (manifest(link={"persistence": {}}), LINK, Change.ORPHAN),
        (manifest(link={"service": {"type": "NodePort"}}), SERVICE, Change.UPDATE),
    ],
    ids=["replicas", "image", "claims", "persistence", "service-type"],
)
def test_a_new_spec(changed, ref, decided):
    assert change(children(changed)[ref], stored(children(manifest())[ref])) is decided


def test_a_claim_that_is_taken_away_is_a_change_of_a_fixed_field():
    wanted, found = children(manifest()), children(manifest(pool(**VOLUMES["claims"])))
    assert change(wanted[NODES], stored(found[NODES])) is Change.ORPHAN


def edited(ref, *path, to):
    found = stored(children(manifest())[ref])
    place = found
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = to
    return found


TEMPLATE = ("spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("found", "decided"),
    [
        (edited(NODES, *TEMPLATE, "image", to="mine"), Change.REPAIR),
        (edited(NODES, *TEMPLATE, "args", to=["--evil"]), Change.REPAIR),
        (edited(NODES, "metadata", "labels", to={}), Change.REPAIR),
        (edited(NODES, "metadata", "labels", "more", to="x"), Change.NONE),
        (edited(NODES, "spec", "replicas", to=17), Change.NONE),
        (edited(NODES, "spec", "selector", to={"matchLabels": {"a": "b"}}), Change.REPLACE),
        (edited(NODES, "spec", "minReadySeconds", to=3), Change.NONE),
    ],
    ids=["image", "args", "labels", "more-labels", "scale", "selector", "default"],
)
def test_an_edit_by_hand(found, decided):
    assert change(children(manifest())[NODES], found) is decided


def test_a_service_cannot_become_headless_in_place():
    (headless,) = (c for r, c in children(manifest()).items() if r == Ref("Service", NODES.name))
    plain = copy.deepcopy(headless)
    plain["spec"]["clusterIP"] = "10.0.0.7"
    assert change(headless, plain) is Change.REPLACE


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": []}, {}, True),
        ({"a": {"b": False}}, {}, True),
        ({"a": {"b": True}}, {}, False),
        ({"a": ["x"]}, {"a": None}, False),
        ({"cpu": "1000m"}, {"cpu": "1"}, True),
        ({"cpu": 0.5}, {"cpu": "500m"}, True),
        ({"memory": "1024Mi"}, {"memory": "1Gi"}, True),
        ({"memory": "1G"}, {"memory": "1Gi"}, False),
        ({"a": "x"}, {"a": {"b": 1}}, False),
        ({"a": {"b": 1}}, {"a": "x"}, False),
        ({"a": ["x"]}, {"a": "x"}, False),
    ],
)
def test_covering(wanted, found, same):
    assert covers(wanted, found) is same


@pytest.mark.parametrize("text", ["", "Gi", "1.2.3", "x", "1 Gi", True, None, "--port=80"])
def test_no_quantity(text):
    assert quantity(text) is None
