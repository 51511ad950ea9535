"""A machine elsewhere: which session it runs, whom it waits for, and how it ends."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.virtual import experiment
from uncurtail.adapters import certificates, children, clock
from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.gate_client import LockedOutError, NotWantedError
from uncurtail.adapters.gate_pass import ADDRESS, Pass
from uncurtail.adapters.gpu_limits import RECORD
from uncurtail.core.orders import Wanted
from uncurtail.errors import UserError
from uncurtail.site.machine import MACHINE, Ended, Machine, check_clock

RUN = "virtual-1"


class Script:
    """A gate that says one thing after the other; at the end it knows this machine no more."""

    def __init__(self, *wanted: Wanted | Exception, refused: dict[int, Exception] | None = None):
        self.says: Iterator[Wanted | Exception] = iter(wanted)
        self.refused = refused or {}
        self.keys: dict[int, str] = {}
        self.run, self.snapshot = RUN, list[str]()
        self.missing: set[str] = set()
        self.fetching: Callable[[str], None] = lambda _path: None

    def welcome(self) -> dict[str, Any]:
        config = experiment().model_dump_json()
        now = clock.wall()
        return {"run": self.run, "config": config, "snapshot": self.snapshot, "now_wall_s": now}

    def wanted(self) -> Wanted | None:
        said = next(self.says, LockedOutError("the script is over"))
        if isinstance(said, Exception):
            raise said
        return said

    def register(self, session: int, public_key: str) -> None:
        if session in self.refused:
            raise self.refused.pop(session)
        self.keys[session] = public_key

    def fetch(self, path: str, place: Path) -> None:
        self.fetching(path)
        if path in self.missing:
            raise UnusableError(f"{path} is not there")
        place.write_text("{}")


@pytest.fixture
def machine(tmp_path):
    """Makes machines with a home of their own; their sessions note that they ran, and end."""
    certificates.write_server_certificates(tmp_path / "tls")
    authority = (tmp_path / "tls" / "ca.crt").read_text()
    made: list[Machine] = []

    def make(gate: Script, *, site: str = "solar", shell: str = "echo $UNCURTAIL_SESSION >> ran"):
        def command(folder: Path, _site: str, _session: int) -> list[str]:
            return ["sh", "-c", f"cd {folder} && {shell}"]

        leave = Pass("gate.example:8443", authority, site, "t0ken")
        one = Machine(leave, gate, tmp_path / "home", command, ask_every_wall_s=0.01)
        made.append(one)
        return one

    yield make
    for one in made:
        one.end()


def up(*sessions: int) -> list[Wanted]:
    return [Wanted(session, up=True) for session in sessions]


def ran(machine: Machine) -> list[int]:
    path = machine.folder.path / "ran"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def until_the_script_is_over(machine: Machine) -> None:
    machine.prepare()
    with pytest.raises(UserError, match="the script is over: copy anew"):
        machine.serve(None)


def test_each_session_that_is_wanted_is_run_once_and_no_other(machine):
    gate = Script(*up(1, 1, 1), Wanted(1, up=False), Wanted(2, up=False), *up(3, 3))
    one = machine(gate)
    until_the_script_is_over(one)
    assert ran(one) == [1, 3]
    assert gate.keys.keys() == {1, 3}
    assert gate.keys[1].startswith("ecdsa-sha2-nistp384 ")


@pytest.mark.parametrize(
    "refused",
    [NotWantedError("not now"), UnusableError("it has another key")],
    ids=["withdrawn", "another machine's"],
)
def test_a_session_that_is_refused_is_given_up_for_the_next(machine, refused):
    one = machine(Script(*up(1, 2, 2), refused={1: refused}))
    until_the_script_is_over(one)
    assert ran(one) == [2]


def test_a_session_that_was_begun_before_a_restart_is_left_to_end(machine):
    until_the_script_is_over(machine(Script(*up(1))))
    one = machine(Script(*up(1, 1, 2)))
    until_the_script_is_over(one)
    assert ran(one) == [1, 2], "its key is locked out: the next has another"


def test_a_machine_made_for_a_session_waits_for_it_alone(machine):
    early = machine(Script(*up(3), refused={4: NotWantedError("not yet")}))
    early.prepare()
    assert early.serve(4) == 0
    assert ran(early) == [4]
    late = machine(Script(*up(6), refused={5: NotWantedError("over")}))
    late.prepare()
    assert late.serve(5) == 1
    assert ran(late) == [4]


def test_a_gate_that_is_away_is_told_of_once_and_asked_on(machine, caplog):
    caplog.set_level(logging.INFO, "uncurtail.join")
    away = BlobError("what is wanted: the gate cannot be reached: refused")
    one = machine(Script(*[away] * 4, *up(1)))
    until_the_script_is_over(one)
    assert ran(one) == [1]
    said = [record.getMessage() for record in caplog.records]
    assert sum("cannot be reached" in line for line in said) == 1
    assert said.count("the gate answers again") == 1


def test_ctrl_c_ends_a_download_at_once(machine):
    gate = Script(*up(1))
    one = machine(gate)
    before = signal.signal(signal.SIGTERM, one.asked_to_end)
    gate.fetching = lambda _path: os.kill(os.getpid(), signal.SIGTERM)
    try:
        with pytest.raises(Ended):
            one.prepare()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_home_has_one_machine_for_a_site_and_room_for_other_sites(machine):
    first, second = machine(Script()), machine(Script(), site="duck")
    first.prepare()
    second.prepare()
    assert first.folder.path != second.folder.path
    again = machine(Script())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        note = f'{{"pid": {other.pid}, "started": {children.started(other.pid)}}}'
        (first.folder.private / MACHINE).write_text(note)
        with pytest.raises(UserError, match=f"process {other.pid} is solar of {RUN} already"):
            again.prepare()
        other.kill()


def test_what_escapes_a_session_does_not_outlive_it(machine):
    one = machine(Script(*up(1)), shell="setsid sleep 600 & exit 1")
    until_the_script_is_over(one)
    assert children.marked(f"{RUN}@solar") == []


@pytest.mark.parametrize("killed", [False, True], ids=["session", "machine"])
def test_gpus_that_a_killed_session_left_capped_are_put_back(machine, killed):
    """The record's own rows are the business of its module: here there are none."""
    one = machine(Script(*up(1)), shell="echo {} > sites/solar/gpu-limits.json; exit 1")
    one.prepare()
    record = one.folder.site("solar") / RECORD
    if killed:
        record.write_text("{}")
        one.prepare()
    else:
        with pytest.raises(UserError):
            one.serve(None)
    assert not record.exists()


def test_a_snapshot_that_another_machine_replaced_is_done_without(machine):
    gate = Script(*up(1))
    gate.snapshot = ["optimizer-0123456789abcdef.safetensors", "snapshot.json"]
    gate.missing = {f"snapshot/{gate.snapshot[0]}"}
    one = machine(gate)
    until_the_script_is_over(one)
    assert ran(one) == [1]
    assert list((one.folder.site("solar") / "snapshot").iterdir()) == []


@pytest.mark.parametrize("name", ["../../elsewhere", "", ".", "a/b"])
def test_a_run_is_a_folder_below_home_whatever_the_gate_says(machine, name):
    gate = Script()
    gate.run = name
    with pytest.raises(UserError, match="no name of a run"):
        machine(gate).prepare()


@pytest.mark.parametrize(
    ("before", "now", "after", "word"),
    [
        (100.0, 100.0, 100.0, None),
        (104.0, 100.0, 109.0, None),  # a slow answer proves nothing
        (106.0, 100.0, 106.1, "6 s ahead of"),
        (100.0, 404.0, 100.0, None),
        (100.0, 410.0, 100.0, "310 s behind"),
    ],
)
def test_a_clock_that_flower_will_not_believe_is_told_before_anything_is_trained(
    before, now, after, word
):
    if word is None:
        check_clock(before, now, after)
    else:
        with pytest.raises(UserError, match=word):
            check_clock(before, now, after)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({children.SITE: ""}, f"{children.SITE} is not set: copy"),
        ({ADDRESS: "gate.example"}, f"{ADDRESS} = 'gate.example' is no address"),
        ({ADDRESS: "gate.example:port"}, f"{ADDRESS} = 'gate.example:port' is no address"),
        ({children.SESSION: "first"}, f"{children.SESSION} = 'first' is no session"),
        ({children.SESSION: "0"}, f"{children.SESSION} = '0' is no session"),
    ],
)
def test_an_environment_that_cannot_be_is_told_in_one_line(tmp_path, variables, message):
    certificates.write_server_certificates(tmp_path / "tls")
    authority = (tmp_path / "tls" / "ca.crt").read_text()
    leave = Pass("gate.example:8443", authority, "solar", "t0ken")
    environment = {**os.environ, children.SITE: "solar", **leave.environment(), **variables}
    command = [sys.executable, "-m", "uncurtail", "site", "join", "--home", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "t0ken" not in ended.stderr + ended.stdout
