"""Downloads from a server that speaks the Hub's protocol, with every fault that a network has."""

import hashlib
import socket
import subprocess
import sys

import pytest

from tests.hubserver import COMMIT, REPO, Fault, serving
from uncurtail.adapters.hub import download_shards
from uncurtail.errors import UserError
from uncurtail.lm.sections import DataSection

SIZE = 300_000
NAMES = ("shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet")
SECTION = DataSection(source="fineweb-edu", repo=REPO, shards=2)


def content(seed):
    return b"".join(hashlib.sha256(b"%d/%d" % (seed, i)).digest() for i in range(SIZE // 32))


FILES = {name: content(index) for index, name in enumerate(NAMES)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # the library's and our own waiting
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 14)
    with serving(dict(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/")
        yield hub


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "uncurtail" / "hub" / REPO.replace("/", "--")


def fetch(section=SECTION):
    shares = []
    downloaded = download_shards(section, lambda stage, share: shares.append((stage, share)))
    return downloaded, shares


def test_the_first_shards_arrive_whole_under_the_name_of_their_content(hub, folder):
    downloaded, shares = fetch()
    for (path, sha256), name in zip(downloaded.files, NAMES, strict=False):
        assert path.read_bytes() == FILES[name]
        assert sha256 == hashlib.sha256(FILES[name]).hexdigest()
        assert path == folder / f"{name.removesuffix('.parquet')}-{sha256[:12]}.parquet"
    assert downloaded.origin == f"{REPO}@{COMMIT}, 2 files"
    assert {p.name for p in folder.iterdir()} == {path.name for path, _ in downloaded.files}
    assert shares[-1] == ("download", 1.0)
    assert [share for _, share in shares] == sorted(share for _, share in shares)
    asked = [(request.method, request.path.split("/")[1]) for request in hub.of_the_repository()]
    assert asked.count(("HEAD", "datasets")) == asked.count(("GET", "storage")) == 2
    assert asked.count(("GET", "api")) == 1
    assert len(asked) == 5


def test_what_is_here_is_not_fetched_again(hub):
    first, _ = fetch()
    more, _ = fetch(SECTION.model_copy(update={"shards": 3}))
    assert more.files[:2] == first.files
    assert len(hub.bodies()) == 3


def test_a_small_file_is_compared_with_gits_hash(hub):
    hub.small = set(NAMES)
    downloaded, _ = fetch()
    assert [len(etag) for _, etag in downloaded.files] == [40, 40]


def test_the_account_is_told_to_the_hub_and_to_nobody_else(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch()
    for request in hub.of_the_repository():
        stored = request.path.startswith("/storage/")
        assert request.authorization == (None if stored else "Bearer hf_secret")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("api", "500", times=2),
        Fault("head", "503", times=2),
        Fault("body", "500", times=2),
        Fault("body", "429", times=2),
        Fault("body", "cut", at=100_000, times=3),
        Fault("body", "cut", at=0, times=2),
    ],
    ids=["api-500", "head-503", "body-500", "rate", "cut", "cut-at-once"],
)
def test_a_passing_fault_is_waited_for(hub, fault):
    hub.faults = [fault]
    downloaded, _ = fetch()
    assert [path.read_bytes() for path, _ in downloaded.files] == [FILES[n] for n in NAMES[:2]]
    assert not hub.faults


def test_a_cut_download_goes_on_where_it_stopped(hub, folder):
    one = SECTION.model_copy(update={"shards": 1})
    hub.faults = [Fault("body", "cut", at=100_000, times=1), Fault("body", "404")]
    with pytest.raises(UserError, match=r"shard_00000\.parquet .*not found"):
        fetch(one)
    (half,) = folder.iterdir()
    assert half.name.endswith(".part")
    kept = half.stat().st_size
    assert half.read_bytes() == FILES[NAMES[0]][:kept]
    assert 0 < kept <= 100_000
    hub.requests.clear()
    ((path, _),), shares = fetch(one)[0].files, fetch(one)[1]
    assert path.read_bytes() == FILES[NAMES[0]]
    assert [request.range for request in hub.bodies()] == [f"bytes={kept}-"]
    assert shares == [("download", 1.0)]
    assert not half.exists()


def test_a_killed_download_goes_on_where_it_stopped(hub, folder):
    hub.faults = [Fault("body", "stall", at=200_000)]
    code = (
        "import huggingface_hub.constants as constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 1 << 14\n"
        "from uncurtail.adapters.hub import download_shards\n"
        "from uncurtail.lm.sections import DataSection\n"
        f"section = DataSection(source='fineweb-edu', repo={REPO!r}, shards=1)\n"
        "download_shards(section, lambda stage, share: print(share, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if float(line) > 0.3:
                child.kill()
    (half,) = folder.iterdir()
    kept = half.stat().st_size
    assert 0 < kept <= 200_000
    hub.requests.clear()
    ((path, _),) = fetch(SECTION.model_copy(update={"shards": 1}))[0].files
    assert path.read_bytes() == FILES[NAMES[0]]
    assert [request.range for request in hub.bodies()] == [f"bytes={kept}-"]


def test_a_server_that_ignores_ranges_is_served_from_the_start(hub, folder):
    one = SECTION.model_copy(update={"shards": 1})
    hub.faults = [Fault("body", "cut", at=100_000), Fault("body", "whole")]
    ((path, _),) = fetch(one)[0].files
    assert path.read_bytes() == FILES[NAMES[0]]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("api", "404", None), r"not found \(404\): check data\.repo"),
        (Fault("api", "401", None), "set HF_TOKEN"),
        (Fault("api", "500", None), "answered 500: run it again"),
        (Fault("head", "404", None), "not found"),
        (Fault("head", "no hub", None), "speaks the Hub's protocol"),
        (Fault("body", "403", None), "set HF_TOKEN"),
        (Fault("body", "404", None), "not found"),
        (Fault("body", "503", None), "answered 503: run it again, it goes on"),
        (Fault("body", "short", None), "should be of size 300000 .*run it again"),
        (Fault("body", "cut", None), "no connection .*run it again, it goes on where it stopped"),
        (Fault("body", "wrong", None), "another hash .*nothing was kept"),
    ],
    ids=lambda value: f"{value.where}-{value.kind}" if isinstance(value, Fault) else "",
)
def test_a_lasting_fault_is_one_line_and_nothing_looks_complete(hub, folder, fault, message):
    hub.faults = [fault]
    with pytest.raises(UserError, match=message) as caught:
        fetch()
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*.parquet"))
    hub.faults = []
    downloaded, _ = fetch()
    assert [path.read_bytes() for path, _ in downloaded.files] == [FILES[n] for n in NAMES[:2]]


def test_a_wrong_hash_throws_away_what_came(hub, folder):
    hub.faults = [Fault("body", "wrong", None, name=NAMES[0])]
    with pytest.raises(UserError, match="another hash"):
        fetch(SECTION.model_copy(update={"shards": 1}))
    assert not list(folder.iterdir())


def test_a_failure_keeps_what_is_already_whole(hub, folder):
    hub.faults = [Fault("body", "wrong", None, name=NAMES[2])]
    fetch(SECTION.model_copy(update={"shards": 1}))
    with pytest.raises(UserError, match="another hash"):
        fetch(SECTION.model_copy(update={"shards": 3}))
    assert len(list(folder.glob("shard_00000-*.parquet"))) == 1
    assert not list(folder.glob("shard_00002*"))


def test_more_shards_than_there_are_is_refused_with_the_number(hub):
    with pytest.raises(UserError, match=r"has 3 Parquet files, not 4: set data\.shards"):
        fetch(SECTION.model_copy(update={"shards": 4}))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"repo": "nobody/nothing"}, "nobody/nothing.*check data.repo"),
        ({"revision": "v9"}, "revision v9: not found"),
        ({"repo": "not a name/x/y"}, "check data.repo"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, update, message):
    with pytest.raises(UserError, match=message) as caught:
        fetch(SECTION.model_copy(update=update))
    assert "\n" not in str(caught.value)


def test_a_missing_network_is_one_line(hub, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(UserError, match=f"no connection to {address} .*check the network"):
            fetch()


def test_offline_mode_is_named(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        fetch()


def test_a_full_disk_is_named_before_it_is_full(hub, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(UserError, match=r"GB free.*make room"):
        fetch()
