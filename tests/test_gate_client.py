"""Both ends of the gate over real TLS: what a machine hears, and what a broken gate does to it."""

import hashlib
import threading

import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tests.test_gate import HEART, ROW, SECRET, STATE, STEP, Door
from uncurtail.adapters import clock
from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.certificates import site_token
from uncurtail.adapters.gate_client import Gate, LockedOutError, NotWantedError
from uncurtail.adapters.gate_listen import server
from uncurtail.adapters.gate_pass import Pass
from uncurtail.adapters.redis_server import free_port
from uncurtail.core.orders import Wanted
from uncurtail.errors import UserError
from uncurtail.lm.snapshot import Snapshot, read_snapshot, write_snapshot
from uncurtail.site.planes import fetched, hand_in


class Served:
    """An application behind real TLS, on a port of its own."""

    def __init__(self, app: Starlette, door: Door) -> None:
        self.door, self.port = door, free_port()
        self._server = server(app, door.folder / "tls", "127.0.0.1", self.port)
        self._thread = threading.Thread(target=self._server.run)
        self._gates: list[Gate] = []

    def __enter__(self) -> "Served":
        self._thread.start()
        give_up = clock.monotonic() + 30.0
        while not self._server.started and clock.monotonic() < give_up:
            clock.pause(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        for gate in self._gates:
            gate.close()
        self._server.should_exit = True
        self._thread.join(20)

    def gate(self, site: str = "oslo", token: str | None = None) -> Gate:
        authority = (self.door.folder / "tls" / "ca.crt").read_text()
        shown = site_token(SECRET, site) if token is None else token
        self._gates.append(Gate(Pass(f"127.0.0.1:{self.port}", authority, site, shown)))
        return self._gates[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    door = Door(tmp_path_factory.mktemp("run"))
    with Served(door.app, door) as one:
        yield one


def test_a_machine_does_all_it_has_to_through_the_gate(served, tmp_path):
    gate, door = served.gate(), served.door
    assert gate.welcome()["run"] == "demo-1"
    assert gate.wanted() == Wanted(2, up=True)
    gate.register(2, "ecdsa A")
    assert door.registered == [("oslo", 2, "ecdsa A")]
    assert gate.exchange(HEART, [STEP]) == (None, None, None, 1.5)
    gate.record(ROW)
    model = door.store.put_hashed(b"weights")
    assert gate.get(model) == b"weights"
    gate.put("updates/demo-1/000007/oslo.2/1", b"delta" * 100)
    assert door.store.get("updates/demo-1/000007/oslo.2/1") == b"delta" * 100
    gate.fetch("data/manifest.json", tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_a_snapshot_is_handed_in_and_fetched_whole(served, tmp_path):
    gate, folder = served.gate(), tmp_path / "snapshot"
    write_snapshot(folder, Snapshot({"momentum": torch.ones(3)}, "small"))
    (state,) = folder.glob("optimizer-*")
    hand_in(gate, folder)
    assert gate.welcome()["snapshot"] == [state.name, "snapshot.json"]
    for name in gate.welcome()["snapshot"]:
        gate.fetch(f"snapshot/{name}", tmp_path / name)
    found = read_snapshot(tmp_path, "small")
    assert not isinstance(found, str), found
    assert found["momentum"].tolist() == [1.0, 1.0, 1.0]


def test_what_is_too_large_is_told_and_not_only_cut_off(served, tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 50_000_000)
    with pytest.raises(BlobError, match="too large: 50000000 bytes, at most 1000 are taken"):
        served.gate().keep(f"snapshot/{STATE}", tmp_path / "large")


def test_a_machine_is_told_why_it_is_not_let_in(served, tmp_path):
    with pytest.raises(LockedOutError, match="the token is not that of this site"):
        served.gate(token="another").wanted()
    with pytest.raises(NotWantedError, match="session 1 of oslo is not wanted now"):
        served.gate().register(1, "ecdsa A")
    with pytest.raises(UnusableError, match="nothing is not there"):
        served.gate().fetch("data/nothing", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_gate_of_another_authority_is_none(served, tmp_path):
    other = Door(tmp_path)
    authority = (other.folder / "tls" / "ca.crt").read_text()
    stranger = Gate(Pass(f"127.0.0.1:{served.port}", authority, "oslo", "t0ken"))
    with pytest.raises(BlobError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.wanted()
    stranger.close()


def test_steps_that_are_not_taken_do_not_hold_up_the_heartbeat(served):
    before = len(served.door.plane.heard)
    assert served.gate().exchange(HEART, [{**STEP, "tokens": -1}]) is not None
    assert served.door.plane.heard[before:] == [("oslo", HEART, [])]


async def half(_: Request) -> StreamingResponse:
    async def pieces():
        yield b"half"

    return StreamingResponse(pieces(), headers={"content-length": "100"})


async def nonsense(_: Request) -> JSONResponse:
    return JSONResponse({"session": "soon"})


async def text(_: Request) -> PlainTextResponse:
    return PlainTextResponse("<html>please log in</html>")


@pytest.mark.parametrize("answer", [half, nonsense, text])
def test_a_gate_that_lies_is_a_gate_that_is_away(tmp_path, answer, capsys):
    (tmp_path / "run").mkdir()
    door = Door(tmp_path / "run")
    lying = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])])
    with Served(lying, door) as one:
        gate = one.gate()
        with pytest.raises(BlobError):
            gate.wanted()
        assert gate.exchange(HEART, [STEP]) is None
        key = f"objects/{hashlib.sha256(b'weights').hexdigest()}"
        with pytest.raises(BlobError):
            gate.get(key)
        if answer is half:
            with pytest.raises(BlobError):
                gate.fetch("data/manifest.json", tmp_path / "manifest.json")
            assert not (tmp_path / "manifest.json").exists()
    capsys.readouterr()  # the server says that its answer was cut short


@pytest.mark.parametrize(
    ("faults", "patience_s", "ends"),
    [
        ([BlobError("away")] * 2, 30.0, None),
        ([BlobError("away")], 0.0, BlobError),
        ([UnusableError("shard 3 is not there")], 30.0, UserError),
    ],
    ids=["comes back", "stays away", "has no such shard"],
)
def test_a_step_waits_for_a_shard_while_the_gate_is_away(faults, patience_s, ends):
    left: list[Exception] = list(faults)

    def call() -> None:
        if left:
            raise left.pop(0)

    if ends is None:
        fetched(call, patience_s)
    else:
        with pytest.raises(ends):
            fetched(call, patience_s)
    assert left == []
