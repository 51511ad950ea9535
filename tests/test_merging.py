"""What the coordinator folds of what sites send, and what it refuses."""

import hashlib

import pytest
import torch

from uncurtail.adapters.blobs import ObjectStore
from uncurtail.lm.checkpoint import decode_weights, encode_weights
from uncurtail.merging import UpdateMerger
from uncurtail.sync.codec import encode_delta
from uncurtail.sync.sections import OuterSection


@pytest.fixture
def store(tmp_path):
    return ObjectStore(None, tmp_path)


def base(store, value=1.0):
    return store.put_hashed(encode_weights({"a": torch.full((4, 4), value)}))


def fold(merger, store, key, moved, tokens=100):
    """Send an update that adds `moved` to each weight; why it was refused, or None."""
    weights = decode_weights(store.get(key))
    data = encode_delta(weights, {n: w + moved for n, w in weights.items()}, "fp32")
    name = f"updates/{moved}"
    store.put(name, data)
    return merger.fold(name, hashlib.sha256(data).hexdigest(), key, tokens)


@pytest.mark.parametrize("broken", [1e3, -1e3, 1e30])
def test_an_update_that_is_far_too_large_is_refused_and_changes_nothing(store, broken):
    merger, key = UpdateMerger(store, OuterSection()), base(store)
    refused = fold(merger, store, key, broken)
    assert refused is not None
    assert refused.startswith("too large: its norm is ")
    assert refused.endswith("outer.max_delta_ratio is 100")
    assert fold(merger, store, key, 0.5) is None
    model, _ = merger.finish(key, None)
    assert decode_weights(store.get(model))["a"].unique().tolist() == [1.5]


def test_the_bound_is_the_experiments(store):
    merger = UpdateMerger(store, OuterSection(max_delta_ratio=2000.0))
    assert fold(merger, store, base(store), 1e3) is None


def test_a_damaged_or_absent_update_is_refused(store):
    merger, key = UpdateMerger(store, OuterSection()), base(store)
    store.put("updates/x", b"not what was hashed")
    assert "damaged" in (merger.fold("updates/x", "0" * 64, key, 1) or "")
    assert merger.fold("updates/nowhere", "0" * 64, key, 1) is not None


@pytest.mark.parametrize(
    ("outer", "wanted"),
    [
        # means of -0.5 and 1.6
        (OuterSection(), [0.5, 2.1]),
        # velocities of -0.5 and -0.25 + 1.6 = 1.35; steps of half of the mean and half the velocity
        (OuterSection(kind="nesterov", lr=0.5, momentum=0.5), [0.625, 1.7625]),
    ],
    ids=["plain", "nesterov"],
)
def test_two_rounds_of_two_sites_are_those_by_hand(store, outer, wanted):
    merger, model, momentum = UpdateMerger(store, outer), base(store), None
    found = []
    for updates in ([(1.0, 100), (-1.0, 300)], [(2.0, 300), (0.4, 100)]):
        for moved, tokens in updates:
            assert fold(merger, store, model, moved, tokens) is None
        model, momentum = merger.finish(model, momentum)
        found += decode_weights(store.get(model))["a"].unique().tolist()
    assert found == pytest.approx(wanted, rel=1e-5)
    assert (momentum is None) is (outer.kind == "plain")
