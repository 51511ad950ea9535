"""What keeps a run's processes alive: when to start again, and what must not be started twice."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from tests.virtual import START, experiment
from uncurtail.adapters import children
from uncurtail.adapters.flower_commands import Flower
from uncurtail.config import ConfigError
from uncurtail.core.events import unix
from uncurtail.monitor import Monitor
from uncurtail.provisioning import invitation
from uncurtail.runfolder import SUPERVISOR, RunFolder
from uncurtail.supervisor import STEADY_S, Backoff, prepare, saving_s, write_credentials


def starts(lifetimes: list[float]) -> list[float]:
    """How long each start had to wait, of a process that lives so long each time."""
    backoff, now, waits = Backoff(), 0.0, []
    for lifetime in lifetimes:
        died = now
        while not backoff.due(now):
            now += 0.25
        waits.append(now - died)
        now += lifetime
    return waits


def test_what_dies_at_once_is_started_ever_later_and_never_given_up():
    assert starts([0.0] * 8) == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_what_lived_for_a_while_is_started_at_once():
    assert starts([0.0, 0.0, STEADY_S + 1.0, 0.0, 0.0]) == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_a_run_that_drains_has_longer_while_a_trainer_writes_its_snapshot(tmp_path):
    folder = RunFolder(tmp_path / "demo-1")
    settings = experiment(fleet={"snapshot_timeout_wall_s": 50.0})
    assert saving_s(settings, folder) == 0.0
    mark = folder.unfinished_snapshot(next(iter(settings.sites)))
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert saving_s(settings, folder) == 50.0


def test_a_run_that_is_running_is_not_started_a_second_time(tmp_path):
    folder = RunFolder(tmp_path / "demo-1")
    folder.create()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        note = {"pid": other.pid, "started": children.started(other.pid)}
        (folder.private / SUPERVISOR).write_text(json.dumps(note))
        settings = experiment()
        monitor = Monitor(settings, folder, Console(file=io.StringIO()), unix(START))
        with pytest.raises(ConfigError, match=rf"demo-1 is running \(process {other.pid}\): stop"):
            prepare(settings, folder, monitor, "data")
        assert other.poll() is None
        other.kill()


def test_what_lets_a_machine_in_still_does_when_its_run_is_resumed(tmp_path):
    folder = RunFolder(tmp_path / "demo-1")
    folder.create()
    settings = experiment(gate={"address": "gate.example:8443"})
    site = next(iter(settings.sites))
    flower = Flower(folder.private, 1)
    write_credentials(settings, folder, flower)
    before = invitation(settings, folder, site)
    tasks = flower.secret.read_bytes()
    write_credentials(settings, folder, flower)
    assert invitation(settings, folder, site) == before
    assert flower.secret.read_bytes() != tasks, "whom a killed run left is given no task any more"
