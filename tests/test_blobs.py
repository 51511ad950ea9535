"""The store: named by hash, whole or not at all, and the second of two writers is told so."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from uncurtail.adapters.blobs import BlobError, ObjectStore, UnusableError


@pytest.fixture(params=["own folder", "file url"])
def store(request, tmp_path):
    folder = tmp_path / "demo-1"
    folder.mkdir()
    if request.param == "own folder":
        return ObjectStore(None, folder)
    (tmp_path / "elsewhere" / "demo-1").mkdir(parents=True)
    return ObjectStore(f"file://{tmp_path}/elsewhere", folder)


def home(store, tmp_path):
    """Where the store's objects lie."""
    remote = tmp_path / "elsewhere" / "demo-1"
    return remote if remote.exists() else tmp_path / "demo-1"


def test_what_was_put_is_got(store):
    store.put("updates/demo-1/000001/solar.1/1", b"delta")
    assert store.get("updates/demo-1/000001/solar.1/1") == b"delta"
    store.put("updates/demo-1/000001/solar.1/1", b"")
    assert store.get("updates/demo-1/000001/solar.1/1") == b""


def test_an_object_is_named_by_its_hash_and_written_once(store):
    key = store.put_hashed(b"weights")
    assert key == f"objects/{hashlib.sha256(b'weights').hexdigest()}"
    assert store.put_hashed(b"weights") == key
    assert store.keys("objects") == [key]
    assert store.get(key) == b"weights"


@pytest.mark.parametrize("damage", [b"weights!", b"weight", b""])
def test_a_damaged_object_is_never_handed_out(store, tmp_path, damage):
    key = store.put_hashed(b"weights")
    (home(store, tmp_path) / key).write_bytes(damage)
    with pytest.raises(UnusableError, match="is damaged"):
        store.get(key)
    store.put_hashed(b"weights")
    assert store.get(key) == b"weights", "writing it again mends it"


@pytest.mark.parametrize("key", ["objects/0", "commits/00000000.json", "objects"])
def test_what_is_not_there_is_an_error_of_ours(store, key):
    with pytest.raises(UnusableError, match=f"{key} is not there"):
        store.get(key)


def test_the_first_writer_wins_and_the_second_is_told(store):
    assert store.put_new("commits/00000001.json", b"mine")
    assert not store.put_new("commits/00000001.json", b"theirs")
    assert not store.put_new("commits/00000001.json", b"mine")
    assert store.get("commits/00000001.json") == b"mine"


def test_of_many_writers_at_once_exactly_one_wins(store):
    with ThreadPoolExecutor(8) as pool:
        bodies = [str(n).encode() for n in range(8)]
        won = list(pool.map(lambda body: store.put_new("commits/1.json", body), bodies))
    assert sum(won) == 1
    assert store.get("commits/1.json") == bodies[won.index(True)]


def test_commits_are_in_the_runs_folder_wherever_the_store_is(store, tmp_path):
    assert store.put_new("commits/00000001.json", b"commit")
    assert (tmp_path / "demo-1" / "commits" / "00000001.json").read_bytes() == b"commit"


def test_keys_are_listed_in_order_below_their_prefix_only(store):
    for key in ("commits/2", "commits/10", "commits/1", "objects/a", "updates/r/1/s/1"):
        store.put(key, b"")
    assert store.keys("commits") == ["commits/1", "commits/10", "commits/2"]
    assert store.keys("updates") == ["updates/r/1/s/1"]
    assert store.keys("nothing") == []


def test_retiring_keeps_what_a_resume_and_the_open_round_need(store):
    models = [store.put_hashed(text) for text in (b"v0", b"v1", b"v2")]
    updates = [f"updates/demo-1/{number:06d}/solar.1/1" for number in (1, 2, 3)]
    replies = [f"updates/demo-1/{number:06d}/solar.1/reply.json" for number in (1, 2, 3)]
    for key in (*updates, *replies, "updates/demo-1/notes", "commits/00000002.json"):
        store.put(key, b"x")
    store.retire({models[1], models[2], ""}, before_round=2)
    assert store.keys("objects") == sorted(models[1:])
    assert store.keys("updates") == [updates[2], replies[2], "updates/demo-1/notes"]
    assert store.keys("commits") == ["commits/00000002.json"]
    store.retire({models[1], models[2]}, before_round=2)
    assert store.keys("objects") == sorted(models[1:]), "doing it again changes nothing"


def test_a_store_that_cannot_delete_now_does_not_stop_the_run(store, monkeypatch):
    store.put_hashed(b"v0")

    def refuse(_keys):
        raise BlobError("cannot delete: read only")

    monkeypatch.setattr(store, "delete", refuse)
    store.retire([], before_round=1)
    monkeypatch.undo()
    store.retire([], before_round=1)
    assert store.keys("objects") == []


def test_deleting_what_is_gone_is_fine(store):
    store.put("objects/a", b"")
    store.delete(["objects/b", "objects/a", "objects/a"])
    assert store.keys("objects") == []


def test_what_cannot_be_used_is_set_aside_for_a_person_to_look_at(store):
    store.put("commits/00000003.json", b"half")
    store.set_aside("commits/00000003.json")
    assert store.keys("commits") == []
    assert store.get("broken/commits/00000003.json") == b"half"
    assert store.put_new("commits/00000003.json", b"whole"), "its place is free"
    store.set_aside("commits/00000003.json")
    assert store.get("broken/commits/00000003.json") == b"whole"


def test_a_url_that_names_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nonsense:.* write file:// or s3://"):
        ObjectStore("nonsense://x", tmp_path)


def test_what_a_kill_kept_from_the_runs_folder_is_copied_there_later(tmp_path):
    folder = tmp_path / "demo-1"
    (tmp_path / "elsewhere" / "demo-1").mkdir(parents=True)
    store = ObjectStore(f"file://{tmp_path}/elsewhere", folder)
    assert store.put_new("commits/00000000.json", b"zero")
    (folder / "commits" / "00000000.json").unlink()
    store.copy_missing("commits")
    assert (folder / "commits" / "00000000.json").read_bytes() == b"zero"


def test_a_store_that_cannot_be_asked_is_told_from_an_object_that_is_not_there(tmp_path):
    store = ObjectStore("http://127.0.0.1:9", tmp_path)  # plain HTTP is refused by the client
    with pytest.raises(BlobError, match="cannot read commits/1") as told:
        store.get("commits/1")
    assert not isinstance(told.value, UnusableError)
