"""Config to adapters: what a run finds when it starts again."""

import hashlib

import pytest

from uncurtail import wiring
from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.core.leases import FreeSteps
from uncurtail.runfolder import RunFolder


class OutOfReach(ObjectStore):
    """A store that can be listed, and then answers no more."""

    def get(self, key: str) -> bytes:
        raise BlobError(f"cannot read {key}: connection refused")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "demo-1")


def committed(folder, version: int) -> Commit:
    """A commit that is in the folder's store, with its model."""
    store = ObjectStore(None, folder.path)
    commit = Commit(
        run="demo-1",
        version=version,
        epoch=1,
        round=version,
        parent_sha256=None,
        t=0.0,
        wall_s=0.0,
        model=store.put_hashed(f"model {version}".encode()),
        outer=None,
        tokens=0,
        free=FreeSteps(10),
    )
    assert store.put_new(commits.key(version), commit.encode())
    return commit


def test_the_newest_whole_commit_is_found_and_a_damaged_one_set_aside(folder):
    store = ObjectStore(None, folder.path)
    assert wiring.newest_commit(folder, store) is None
    committed(folder, 0)
    newest = committed(folder, 1)
    assert wiring.newest_commit(folder, store) == newest
    (folder.path / newest.model).write_bytes(b"half a mod")
    found = wiring.newest_commit(folder, store)
    assert found is not None
    assert found.version == 0
    assert store.keys("commits") == [commits.key(0)], "its place is free for the next"
    assert hashlib.sha256(store.get(f"broken/{commits.key(1)}")).hexdigest() == newest.sha256()


def test_a_commit_whose_model_is_gone_is_set_aside(folder):
    committed(folder, 0)
    newest = committed(folder, 1)
    (folder.path / newest.model).unlink()
    found = wiring.newest_commit(folder, ObjectStore(None, folder.path))
    assert found is not None
    assert found.version == 0


def test_a_store_that_is_out_of_reach_sets_nothing_aside(folder):
    committed(folder, 0)
    newest = committed(folder, 1)
    with pytest.raises(BlobError, match="connection refused"):
        wiring.newest_commit(folder, OutOfReach(None, folder.path))
    assert wiring.newest_commit(folder, ObjectStore(None, folder.path)) == newest
