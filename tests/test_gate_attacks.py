"""The gate under attack: by strangers, and by a machine that has the token of one site."""

import asyncio
import fcntl
import json
import shutil
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.test_gate import HEART, INDEX, ROW, STATE, STEP, Door, keep
from tests.virtual import experiment
from uncurtail.adapters import certificates, clock
from uncurtail.adapters.blobs import UnusableError
from uncurtail.adapters.flower_commands import Flower
from uncurtail.adapters.gate_bodies import Spool
from uncurtail.adapters.gate_files import append_once
from uncurtail.adapters.gate_server import AT_ONCE, FLEET_BYTES, app
from uncurtail.config import ConfigError
from uncurtail.gating import Registry, elsewhere, invite, most_bytes, refusal
from uncurtail.lm.model import GPT
from uncurtail.lm.sections import ModelSection
from uncurtail.runfolder import RunFolder

Message = dict[str, Any]


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path)


class NeverRead:
    """A body that nobody may ask for."""

    def __aiter__(self):
        raise AssertionError("the body of a stranger was read")


async def spoken(door, request: Message, messages: list[Message]) -> list[Message]:
    """What the gate says to raw ASGI messages; beyond these nothing comes."""
    said: list[Message] = []
    coming = iter(messages)

    async def receive():
        try:
            return next(coming)
        except StopIteration:
            await asyncio.Event().wait()

    async def send(message):
        said.append(message)

    await door.app(request, receive, send)
    return said


def request(method: str, path: str, headers: dict[str, str]) -> Message:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }


@pytest.mark.parametrize(
    "path", ["/v1/fleet/pull-messages", "/site/oslo/2/state", "/site/oslo/snapshot/snapshot.json"]
)
def test_not_a_byte_of_a_strangers_body_is_read(door, path):
    method = "PUT" if "snapshot" in path else "POST"
    answer = door.call(method, path, of=None, content=NeverRead())
    assert answer.status_code == 401
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("token", ["Bearer \u00e9", "\u00ff", "Bearer ", "x" * 10_000])
def test_a_strange_token_is_a_wrong_one(door, token):
    headers = {"authorization": token.encode("latin-1")}
    answer = door.call("GET", "/site/oslo/wanted", of=None, headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize("session", ["-1", "9" * 5000, "1e3", "\u0662"])
def test_a_number_that_nobody_counts_to_is_no_path(door, session):
    assert door.call("POST", f"/site/oslo/{session}/state", json={}).status_code == 404
    assert door.call("PUT", f"/site/oslo/2/updates/{session}/1", content=b"").status_code == 404


def test_a_supernode_hands_in_no_more_than_an_answer(door):
    headers = {"flwr-public-key": "known", "content-length": str(FLEET_BYTES + 1)}
    answer = door.call("POST", "/v1/fleet/push-object", of=None, content=b"", headers=headers)
    assert answer.status_code == 413


def state(heart: Message | None = None, step: Message | None = None) -> str:
    steps = [] if step is None else [{**STEP, **step}]
    return json.dumps({"heart": {**HEART, **(heart or {})}, "steps": steps})


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"heart": ' * 50_000,
        state({"more": 1}),
        state({"session": True}),
        state({"session": "2"}),
        state({"steps": 1 << 70}),
        state({"round": -1}),
        state({"skew_s": float("nan")}),
        state({"capped": 1}),
        state(step={"loss": float("inf")}),
        state(step={"loss": "low"}),
        state(step={"epoch": None}),
        json.dumps({"heart": HEART, "steps": {}}),
        json.dumps({"heart": HEART}),
    ],
    ids=lambda body: str(body[:40]),
)
def test_words_of_another_shape_reach_nobody(door, body):
    answer = door.call("POST", "/site/oslo/2/state", content=body)
    assert answer.status_code == 400
    assert door.plane.heard == []


def test_a_trouble_is_a_line_that_a_terminal_can_show(door):
    said = state({"trouble": "\x1b[2Jgone\n" + "x" * 2000})
    assert door.call("POST", "/site/oslo/2/state", content=said).status_code == 200
    trouble = door.plane.heard[0][1]["trouble"]
    assert trouble == " [2Jgone " + "x" * 991


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        {**ROW, "intervals": [[0, 1]]},
        {**ROW, "steps": float("nan")},
        {**ROW, "token_sha256": "x"},
        {**ROW, "more": "x" * 1000},
        {**ROW, "t": "x" * 1000},
    ],
)
def test_a_row_of_another_shape_is_on_no_record(door, row):
    assert door.call("POST", "/site/oslo/2/consumed", content=json.dumps(row)).status_code == 400
    assert list((door.folder / "sites" / "oslo").iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"watts": "812", "source": "nvml"}',
        b'{"watts": NaN, "source": "nvml"}',
        b'{"watts": 812, "source": "a guess"}',
        b'{"watts": 812, "source": "nvml", "more": 1}',
        b"[" * 100_000,
    ],
    ids=lambda body: str(body[:40]),
)
def test_a_power_of_another_shape_is_not_counted(door, body):
    answer = door.call("POST", "/site/oslo/2/watts", content=body)
    assert answer.status_code == 400
    assert door.plane.watts == []


def test_no_word_on_power_is_gathered_in_memory_without_end(door):
    headers = {"content-length": str(10**12)}
    answer = door.call("POST", "/site/oslo/2/watts", content=b"", headers=headers)
    assert answer.status_code == 413


def test_what_is_larger_than_any_model_is_turned_away_before_it_is_read(door):
    headers = {"content-length": str(10**12)}
    for path in ("2/updates/3/1", f"snapshot/{STATE}"):
        answer = door.call("PUT", f"/site/oslo/{path}", content=b"", headers=headers)
        assert answer.status_code == 413
    answer = door.call("POST", "/site/oslo/2/key", content=b"x" * 10_000)
    assert answer.status_code == 413
    assert door.registered == []


def test_the_last_of_the_disk_is_the_runs(door):
    free_bytes = shutil.disk_usage(door.folder).free * 2
    door.app = app(replace(door.behind, spool=Spool(door.folder / "incoming", free_bytes)))
    assert keep(door, STATE, b"state") == 507
    assert door.call("PUT", "/site/oslo/2/updates/3/1", content=b"delta").status_code == 507
    assert list((door.folder / "incoming").iterdir()) == []
    assert door.store.keys("updates") == []


def test_who_hangs_up_in_the_middle_leaves_nothing_behind(door):
    token = certificates.site_token(b"s" * 32, "oslo")
    headers = {"authorization": f"Bearer {token}", "content-length": "10"}
    cut: list[Message] = [
        {"type": "http.request", "body": b"stat", "more_body": True},
        {"type": "http.disconnect"},
    ]
    for path in ("2/updates/3/1", f"snapshot/{STATE}"):
        said = asyncio.run(spoken(door, request("PUT", f"/site/oslo/{path}", headers), cut))
        assert said[0]["status"] == 400
    assert list((door.folder / "incoming").iterdir()) == []
    assert door.store.keys("updates") == []
    assert not (door.folder / "sites" / "oslo" / "snapshot").exists()


def test_what_a_killed_gate_gathered_is_deleted(tmp_path):
    spool = Spool(tmp_path / "incoming", 0)
    spool.folder.mkdir()
    (spool.folder / "half").write_bytes(b"half")
    spool.clear()
    assert not spool.folder.exists()


@pytest.mark.parametrize("name", ["weights.bin", "optimizer-1.safetensors", "unfinished"])
def test_a_snapshot_has_two_kinds_of_files(door, name):
    assert keep(door, name, b"x") == 404


@pytest.mark.parametrize("named", ["../../../private/gate.secret", "consumed.jsonl", ""])
def test_an_index_names_a_state_beside_it(door, named):
    assert keep(door, "snapshot.json", json.dumps({**INDEX, "file": named}).encode()) == 400


def test_rows_are_put_on_a_record_one_after_the_other(tmp_path):
    """A call that was given up goes on beside its repetition: neither may cut the other's off."""
    path = tmp_path / "consumed.jsonl"
    second = threading.Thread(target=append_once, args=(path, {**ROW, "round": 4}))
    with path.open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        second.join(0.3)
        assert path.read_bytes() == b"", "it waits"
        first.write(json.dumps(ROW).encode() + b"\n")
    second.join(10)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [3, 4]


def test_a_record_that_a_site_repeats_does_not_grow(tmp_path):
    for _ in range(3):
        append_once(tmp_path / "consumed.jsonl", ROW)
    assert len((tmp_path / "consumed.jsonl").read_text().splitlines()) == 1


def test_no_update_and_no_state_of_an_optimizer_is_larger_than_is_taken():
    for section in (
        ModelSection(depth=4, vocab_size=300, sequence_length=64),
        ModelSection(depth=2, vocab_size=5000, sequence_length=64, residual_scalars=True),
    ):
        parameters = sum(p.numel() for p in GPT(section).parameters())
        update, state = most_bytes(section)
        assert 4 * parameters < update < 6 * parameters + (2 << 20)
        assert 8 * parameters < state


def test_a_site_that_floods_the_gate_leaves_room_for_the_others(door):
    working, most = 0, 0
    noting = threading.Lock()

    def register(_site: str, _session: int, _key: str) -> None:
        nonlocal working, most
        with noting:
            working += 1
            most = max(most, working)
        clock.pause(0.02)
        with noting:
            working -= 1

    flooded = app(replace(door.behind, register=register))
    token = certificates.site_token(b"s" * 32, "oslo")
    headers = {"authorization": f"Bearer {token}"}

    async def flood() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=flooded)
        async with httpx.AsyncClient(
            transport=transport, base_url="https://gate", headers=headers
        ) as client:
            calls = [client.post("/site/oslo/2/key", content="key") for _ in range(60)]
            return await asyncio.gather(*calls)

    assert {answer.status_code for answer in asyncio.run(flood())} == {204}
    assert 1 < most <= AT_ONCE


def test_only_sites_elsewhere_are_let_in(tmp_path):
    config = experiment(gate={"address": "gate.example:8443"})
    assert elsewhere(config) == frozenset()
    config = experiment(
        gate={"address": "gate.example:8443"},
        sites={"duck": {"preset": "duck"}, "solar": {"preset": "solar", "kind": "static"}},
    )
    assert elsewhere(config) == {"solar"}
    folder = RunFolder(tmp_path / "demo-1")
    folder.create()
    folder.resolved.write_text(config.model_dump_json())
    with pytest.raises(ConfigError, match="duck runs where demo-1 does"):
        invite(folder.path, "duck")


class Answering(Flower):
    """A `flwr` that says what a file holds."""

    def register(self, public_key, name):
        del public_key, name
        return ["cat", str(self.private / "said")]


DONE = '{"success": true, "node-id": 1}'
IN_USE = '{"success": false, "error-message": "Using SuperLink\\n\\n[code: 23] already in use."}'


@pytest.fixture
def registry(tmp_path):
    folder = RunFolder(tmp_path / "demo-1")
    folder.create()

    def fresh(said: str) -> Registry:
        (folder.private / "said").write_text(said)
        return Registry(folder, Answering(folder.private, 1))

    return fresh


def key(tmp_path, name: str) -> str:
    certificates.write_session_key(tmp_path / name)
    return str((tmp_path / f"{name}.pub").read_text())


def test_a_session_has_one_key_also_behind_another_gate(registry, tmp_path):
    mine, other = key(tmp_path, "mine"), key(tmp_path, "other")
    first = registry(DONE)
    assert not first.knows(certificates.flower_key(mine))
    assert first.register("oslo", 2, f"{mine} a comment\n") is None
    for gate in (first, registry("not asked again")):
        assert gate.register("oslo", 2, mine) is None
        with pytest.raises(UnusableError, match="has another key"):
            gate.register("oslo", 2, other)
        assert gate.knows(certificates.flower_key(mine))
        assert not gate.knows(certificates.flower_key(other))
        assert not gate.knows("")


def test_a_key_that_flower_refused_is_not_registered_whatever_its_exit_code(registry, tmp_path):
    mine = key(tmp_path, "mine")
    gate = registry(IN_USE)
    assert "already in use" in (gate.register("oslo", 2, mine) or "")
    assert not gate.knows(certificates.flower_key(mine))
    assert refusal("", "no such host\n") == "Flower did not register it: no such host"


def test_a_gate_that_died_while_flower_registered_a_key_takes_it_up_again(registry, tmp_path):
    mine = key(tmp_path, "mine")
    assert registry("died").register("oslo", 2, mine) is not None
    assert registry(IN_USE).register("oslo", 2, mine) is None


@pytest.mark.parametrize("text", ["", "nonsense", "ssh-ed25519 AAAA", "ecdsa-sha2-nistp384 AAAA"])
def test_what_is_no_key_of_a_session_never_reaches_flower(registry, text):
    with pytest.raises(ValueError, match="not an ECDSA P-384 key"):
        registry(DONE).register("oslo", 2, text)
