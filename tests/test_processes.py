"""Sites as local processes: what exists counts, whoever started it."""

import subprocess
import sys
import uuid

import pytest

from uncurtail.adapters import children
from uncurtail.adapters.processes import LEADER, ProcessProvisioner
from uncurtail.core.fleet import SiteSection


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


def test_a_session_that_an_earlier_coordinator_started_is_not_started_again(run, led):
    provisioner = ProcessProvisioner(run, {"duck": SiteSection(preset="duck")})
    provisioner.provision("duck", 3)
    assert provisioner.alive() == {"duck": frozenset({3})}
    assert not (run / "sites" / "duck" / "log").exists(), "nothing was started"
    assert [process.pid for process in children.marked(run.name)] == [led.pid]


def test_what_a_dead_leader_left_behind_is_ended(run, led):
    marks = {children.RUN: run.name, children.SITE: "duck", children.SESSION: "2"}
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env=children.environment(marks)
    ) as left:
        provisioner = ProcessProvisioner(run, {"duck": SiteSection(preset="duck")})
        assert provisioner.alive() == {"duck": frozenset({3})}
        assert left.wait(timeout=10) < 0
