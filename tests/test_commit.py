"""A commit is canonical bytes: the same commit is the same hash, and damage is an error."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core.commit import Accepted, Commit, key
from uncurtail.core.leases import FreeSteps

counts = st.integers(0, 2**53)
words = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
intervals = st.lists(st.tuples(counts, counts, counts), max_size=3).map(tuple)
accepted = st.builds(
    Accepted,
    site=words,
    session=counts,
    intervals=intervals,
    steps=counts,
    tokens=counts,
    token_sha256=words,
    update_sha256=words,
    mean_loss=st.none() | numbers,
)
commits = st.builds(
    Commit,
    run=words,
    version=counts,
    epoch=counts,
    round=counts,
    parent_sha256=st.none() | words,
    t=numbers,
    wall_s=numbers,
    model=words,
    outer=st.none() | words,
    tokens=counts,
    free=st.builds(FreeSteps, counts, counts, intervals),
    updates=st.lists(accepted, max_size=2).map(tuple),
    ledger=st.dictionaries(words, st.dictionaries(words, numbers, max_size=2), max_size=2),
    event_offset=counts,
)
COMMIT = Commit(
    run="demo-1",
    version=1,
    epoch=1,
    round=1,
    parent_sha256="p",
    t=10.0,
    wall_s=20.0,
    model="objects/m",
    outer=None,
    tokens=2048,
    free=FreeSteps(10, 1, ((0, 1, 10),)),
    updates=(Accepted("solar", 1, ((0, 0, 1),), 1, 2048, "t", "u", 2.5),),
    ledger={"solar": {"training": {"energy_j": 1.5}}},
    event_offset=99,
)


@settings(deadline=None)
@given(commits)
def test_a_commit_is_read_as_it_was_written(commit):
    again = Commit.decode(commit.encode())
    assert again == commit
    assert again.encode() == commit.encode()
    assert again.sha256() == commit.sha256()


def test_a_commit_is_named_by_the_hash_of_its_bytes():
    assert COMMIT.sha256() == hashlib.sha256(COMMIT.encode()).hexdigest()


def test_the_order_in_which_a_ledger_grew_does_not_change_the_bytes():
    one = replace(COMMIT, ledger={"a": {"x": 1.0, "y": 2.0}, "b": {}})
    other = replace(COMMIT, ledger={"b": {}, "a": {"y": 2.0, "x": 1.0}})
    assert one.encode() == other.encode()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"parent_sha256": None},
        {"model": "objects/n"},
        {"tokens": 2049},
        {"free": FreeSteps(10, 1, ((0, 2, 10),))},
        {"updates": ()},
        {"ledger": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_in_a_commit_changes_its_hash(change):
    assert replace(COMMIT, **change).sha256() != COMMIT.sha256()


def test_what_is_not_finite_is_not_committed():
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(COMMIT, ledger={"a": {"energy_j": math.nan}}).encode()


def changed(**body) -> bytes:
    return json.dumps({**json.loads(COMMIT.encode()), **body}).encode()


def without(name) -> bytes:
    return json.dumps({k: v for k, v in json.loads(COMMIT.encode()).items() if k != name}).encode()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(COMMIT.encode()[:-20], id="torn"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"7", id="number"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(without("model"), id="no-model"),
        pytest.param(without("free"), id="no-leases"),
        pytest.param(without("updates"), id="no-updates"),
        pytest.param(changed(mood="fine"), id="unknown-field"),
        pytest.param(changed(free=7), id="leases-are-a-number"),
        pytest.param(changed(free={"steps_per_epoch": 1}), id="half-the-leases"),
        pytest.param(changed(updates=[{"site": "solar"}]), id="half-an-update"),
        pytest.param(changed(updates=7), id="updates-are-a-number"),
    ],
)
def test_what_is_no_commit_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        Commit.decode(data)


def test_the_names_of_commits_sort_as_their_versions_do():
    names = [key(version) for version in (0, 9, 10, 99_999_999)]
    assert names == sorted(names)
    assert names[0] == "commits/00000000.json"
