"""Sites as local processes: what exists counts, whoever started it."""

import signal
import subprocess
import sys
import uuid

import pytest

from uncurtail.adapters import children
from uncurtail.adapters.processes import LEADER, ProcessProvisioner
from uncurtail.core.fleet import SiteSection
from uncurtail.runfolder import RunFolder


@pytest.fixture
def run(tmp_path):
    """A run folder whose name marks no other process; whatever it starts is gone at the end."""
    folder = tmp_path / f"demo-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    assert children.kill_marked(folder.name) == 0


@pytest.fixture
def led(run):
    """Session 3 of `duck`, as a coordinator before us started it."""
    marks = {
        children.RUN: run.name,
        children.SITE: "duck",
        children.SESSION: "3",
        children.ROLE: LEADER,
    }
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        command,
        env=children.environment(marks),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        yield leader
        leader.kill()


def provisioner_of(run, **more):
    return ProcessProvisioner(RunFolder(run), {"duck": SiteSection(preset="duck")}, 60.0, **more)


def test_a_session_that_an_earlier_coordinator_started_is_not_started_again(run, led):
    provisioner = provisioner_of(run)
    provisioner.provision("duck", 3)
    assert provisioner.alive() == {"duck": frozenset({3})}
    assert not (run / "sites" / "duck" / "log").exists(), "nothing was started"
    assert [process.pid for process in children.marked(run.name)] == [led.pid]


def test_what_a_dead_leader_left_behind_is_ended(run, led):
    marks = {children.RUN: run.name, children.SITE: "duck", children.SESSION: "2"}
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env=children.environment(marks)
    ) as left:
        provisioner = provisioner_of(run)
        assert provisioner.alive() == {"duck": frozenset({3})}
        assert left.wait(timeout=10) < 0


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(60)
"""


def test_a_session_that_writes_its_snapshot_is_not_ended_the_hard_way(run):
    marks = {
        children.RUN: run.name,
        children.SITE: "duck",
        children.SESSION: "3",
        children.ROLE: LEADER,
    }
    unfinished = RunFolder(run).unfinished_snapshot("duck")
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    provisioner = provisioner_of(run, kill_after_s=0.0)
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(
        command, env=children.environment(marks), stdout=subprocess.PIPE
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        provisioner.release("duck", 3)
        with pytest.raises(subprocess.TimeoutExpired):
            leader.wait(timeout=0.5)
        unfinished.unlink()
        provisioner.release("duck", 3)
        assert leader.wait(timeout=10) == -signal.SIGKILL
