"""The gate: each site with its own token, its own paths and nothing else; whole or not at all."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from uncurtail.adapters import certificates
from uncurtail.adapters.blobs import ObjectStore
from uncurtail.adapters.certificates import site_token
from uncurtail.adapters.gate_pass import ADDRESS, AUTHORITY, TOKEN, Pass
from uncurtail.adapters.gate_server import Behind, app
from uncurtail.core.orders import Wanted
from uncurtail.errors import UserError

SECRET = b"s" * 32


class Plane:
    """The state plane: session 2 of `oslo` is wanted, and what came is kept."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any, Any]] = []
        self.away = False
        self.watts: list[tuple[str, int, float, str]] = []

    def measured(self, site: str, session: int, watts: float, source: str) -> bool:
        if not self.away:
            self.watts.append((site, session, watts, source))
        return not self.away

    def exchange(self, site: str, heart: Any, steps: Any) -> Any:
        if self.away:
            return None
        self.heard.append((site, heart, steps))
        return {"coordinator": None, "desired": None, "announcement": None, "server_s": 1.5}

    def wanted(self, site: str) -> Wanted | None:
        return Wanted(2, up=True) if site == "oslo" else None


class Door:
    """A gate over a run folder, and what calls from outside get."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plane = folder, Plane()
        self.registered: list[tuple[str, int, str]] = []
        certificates.write_server_certificates(folder / "tls")
        (folder / "data").mkdir()
        (folder / "data" / "manifest.json").write_text("{}")
        (folder / "sites" / "oslo").mkdir(parents=True)
        self.store = ObjectStore(None, folder)
        behind = Behind(
            run="demo-1",
            config="{}",
            sites=frozenset({"oslo", "rome"}),
            secret=SECRET,
            superlink="https://127.0.0.1:9",
            authority=folder / "tls" / "ca.crt",
            tls=folder / "tls",
            data=folder / "data",
            records=lambda site: folder / "sites" / site,
            store=self.store,
            state=self.plane,
            register=self.register,
        )
        self.app = app(behind)

    def register(self, site: str, session: int, key: str) -> str | None:
        self.registered.append((site, session, key))
        return None

    def call(self, method: str, path: str, *, of: str | None = "oslo", **what: Any) -> Any:
        """One request; `of` is whose token is shown."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            headers = {} if of is None else {"authorization": f"Bearer {site_token(SECRET, of)}"}
            async with httpx.AsyncClient(transport=transport, base_url="https://gate") as client:
                return await client.request(method, path, headers=headers, **what)

        return asyncio.run(send())


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path)


ROW = {"session": 2, "round": 3, "attempt": 1, "steps": 5}
PATHS = [
    ("GET", "/site/oslo/welcome"),
    ("GET", "/site/oslo/wanted"),
    ("POST", "/site/oslo/2/key"),
    ("POST", "/site/oslo/2/state"),
    ("POST", "/site/oslo/2/watts"),
    ("POST", "/site/oslo/2/consumed"),
    ("PUT", "/site/oslo/2/updates/3/1"),
    ("GET", "/site/oslo/objects/x"),
    ("GET", "/site/oslo/data/manifest.json"),
    ("GET", "/site/oslo/snapshot/snapshot.json"),
    ("PUT", "/site/oslo/snapshot/snapshot.json"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("of", [None, "rome", "nobody"])
def test_without_its_own_token_a_site_gets_nothing(door, method, path, of):
    answer = door.call(method, path, of=of)
    assert answer.status_code == 401
    assert list((door.folder / "sites" / "oslo").iterdir()) == []
    assert door.plane.heard == door.registered == []


OUT_OF_FLEET = ["/v1/fleet/..%2Fcontrol%2Fstart-run", "/v1/fleet/%2e%2e/control", "/v1/fleet/a/b"]


@pytest.mark.parametrize(
    "path",
    ["/v1/control/start-run", "/v1/runtime/acquire-task", "/health", "/", "/docs", *OUT_OF_FLEET],
)
def test_nothing_of_superlink_is_open_but_what_supernodes_sign(door, path):
    assert door.call("POST", path, of=None).status_code in (404, 405)


def test_a_supernodes_call_is_handed_on_and_a_dead_superlink_is_told(door):
    answer = door.call("POST", "/v1/fleet/pull-messages", of=None, content=b"signed")
    assert answer.status_code == 503
    assert "SuperLink" in answer.json()["error"]


@pytest.mark.parametrize("name", ["..%2Fprivate%2Fgate.secret", ".hidden", "a%2Fb", "%2e%2e"])
@pytest.mark.parametrize("kind", ["data", "objects", "snapshot"])
def test_a_name_is_a_name_and_no_path(door, kind, name):
    (door.folder / "private").mkdir()
    (door.folder / "private" / "gate.secret").write_bytes(SECRET)
    answer = door.call("GET", f"/site/oslo/{kind}/{name}")
    assert answer.status_code == 404
    assert SECRET not in answer.content


def test_a_model_is_read_and_an_update_lands_where_its_session_leaves_it(door):
    key = door.store.put_hashed(b"weights")
    assert door.call("GET", f"/site/oslo/{key}").content == b"weights"
    assert door.call("PUT", "/site/oslo/2/updates/7/1", content=b"delta").status_code == 204
    assert door.store.get("updates/demo-1/000007/oslo.2/1") == b"delta"
    missing = door.call("GET", f"/site/oslo/objects/{hashlib.sha256(b'x').hexdigest()}")
    assert missing.status_code == 404


def test_an_update_that_was_cut_short_is_none(door):
    async def half():
        yield b"del"

    answer = door.call(
        "PUT", "/site/oslo/2/updates/7/1", content=half(), extensions={"announced": 5}
    )
    assert answer.status_code == 400, "how long it is was not said"
    assert door.store.keys("updates") == []


def test_what_was_consumed_is_on_record_once_behind_whole_lines(door):
    path = door.folder / "sites" / "oslo" / "consumed.jsonl"
    path.write_bytes(b'{"session": 1, "round": 1, "attempt": 1}\n{"sess')
    for row in (ROW, ROW, {**ROW, "attempt": 2}):
        assert door.call("POST", "/site/oslo/2/consumed", json=row).status_code == 204
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["attempt"] for row in rows] == [1, 1, 2]
    assert rows[1] == ROW
    assert door.call("POST", "/site/oslo/1/consumed", json=ROW).status_code == 400


def test_a_session_speaks_for_itself_alone(door):
    heart = {"session": 2, "stepping": True, "round": 1, "steps": 0, "skew_s": 0.0}
    step = {"site": "oslo", "session": 2, "round": 1}
    good = door.call("POST", "/site/oslo/2/state", json={"heart": heart, "steps": [step]})
    assert good.json()["server_s"] == 1.5
    for body in (
        {"heart": {**heart, "session": 3}, "steps": []},
        {"heart": heart, "steps": [{**step, "site": "rome"}]},
    ):
        assert door.call("POST", "/site/oslo/2/state", json=body).status_code == 400
    assert len(door.plane.heard) == 1
    door.plane.away = True
    away = door.call("POST", "/site/oslo/2/state", json={"heart": heart, "steps": []})
    assert away.status_code == 503


def test_what_a_machine_elsewhere_measures_reaches_the_state_plane(door):
    body = {"watts": 812.5, "source": "nvml"}
    assert door.call("POST", "/site/oslo/2/watts", json=body).status_code == 204
    assert door.plane.watts == [("oslo", 2, 812.5, "nvml")]
    door.plane.away = True
    assert door.call("POST", "/site/oslo/2/watts", json=body).status_code == 503


def test_only_the_session_that_is_wanted_gets_a_key(door):
    assert door.call("GET", "/site/oslo/wanted").json() == {"session": 2, "up": True}
    assert door.call("POST", "/site/oslo/2/key", content="ecdsa A").status_code == 204
    assert door.call("POST", "/site/oslo/1/key", content="ecdsa A").status_code == 409
    rome = door.call("POST", "/site/rome/2/key", of="rome", content="ecdsa A")
    assert rome.status_code == 409
    assert door.registered == [("oslo", 2, "ecdsa A")]


def test_a_snapshot_outlives_its_machine(door):
    for name, content in (("optimizer-1.safetensors", b"state"), ("snapshot.json", b"{}")):
        kept = door.call("PUT", f"/site/oslo/snapshot/{name}", content=content)
        assert kept.status_code == 204
        assert door.call("GET", f"/site/oslo/snapshot/{name}").content == content
    told = door.call("GET", "/site/oslo/welcome").json()
    assert told["snapshot"] == ["optimizer-1.safetensors", "snapshot.json"]
    assert (told["run"], told["config"]) == ("demo-1", "{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({ADDRESS: ""}, f"{ADDRESS} is not set"),
        ({AUTHORITY: "nonsense!"}, f"{AUTHORITY} is no certificate"),
        ({AUTHORITY: base64.b64encode(b"nonsense").decode()}, f"{AUTHORITY} is no certificate"),
        ({TOKEN: ""}, f"{TOKEN} is not set: copy the variables that uncurtail site invite"),
    ],
)
def test_what_lets_a_machine_in_travels_as_variables(tmp_path, change, message):
    certificates.write_server_certificates(tmp_path)
    authority = (tmp_path / "ca.crt").read_text()
    leave = Pass("gate.example:8443", authority, "oslo", "t0ken")
    variables = leave.environment()
    assert Pass.of("oslo", variables) == leave
    with pytest.raises(UserError, match=message):
        Pass.of("oslo", {**variables, **change})
