"""Snapshots beside training: what is on disk when a session ends, and who waits for it."""

import errno
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

import pytest
import torch

from uncurtail.lm.snapshot import Snapshot, read_snapshot
from uncurtail.runfolder import RunFolder
from uncurtail.site.keeper import SnapshotKeeper
from uncurtail.site.leader import end


def snapshot(value: float) -> Snapshot:
    return Snapshot({"momentum/w": torch.full((4, 4), value)}, "small")


def kept(folder):
    state = read_snapshot(folder, "small")
    return state if isinstance(state, str) else float(state["momentum/w"][0, 0])


class Held(Mapping[str, torch.Tensor]):
    """A state that is being written for as long as the test wants."""

    def __init__(self, value: float) -> None:
        self._state = snapshot(value).state
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __getitem__(self, name):
        return self._state[name]

    def __len__(self):
        return len(self._state)

    def __iter__(self):
        self.reached.set()
        assert self.go_on.wait(30)
        return iter(self._state)


def test_a_mark_lies_there_until_the_snapshot_is_on_disk(tmp_path):
    held, mark = Held(1.0), tmp_path / "unfinished"
    keeper = SnapshotKeeper(tmp_path)
    keeper.keep(Snapshot(held, "small"))
    assert held.reached.wait(30)
    assert mark.exists()
    assert not keeper.finish(0.01)
    held.go_on.set()
    assert keeper.finish(30)
    assert not mark.exists()
    assert kept(tmp_path) == 1.0


def test_of_several_snapshots_that_wait_only_the_newest_is_written(tmp_path):
    first, second = Held(1.0), Held(2.0)
    keeper = SnapshotKeeper(tmp_path)
    keeper.keep(Snapshot(first, "small"))
    assert first.reached.wait(30)
    keeper.keep(Snapshot(second, "small"))
    keeper.keep(snapshot(3.0))
    first.go_on.set()
    assert keeper.finish(30)
    assert not second.reached.is_set()
    assert kept(tmp_path) == 3.0


def test_what_a_killed_writer_left_is_deleted_at_the_next_start(tmp_path):
    first = SnapshotKeeper(tmp_path)
    first.keep(snapshot(1.0))
    assert first.finish(30)
    whole = set(tmp_path.iterdir())
    for name in ("optimizer.17.tmp", ".tmpAb3dEf", "snapshot.json.17.tmp", "unfinished"):
        (tmp_path / name).touch()
    SnapshotKeeper(tmp_path)
    assert set(tmp_path.iterdir()) == whole
    assert kept(tmp_path) == 1.0


class Unwritable(Held):
    """A state for which there is no room."""

    def __iter__(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_snapshot_and_nothing_else(tmp_path):
    keeper = SnapshotKeeper(tmp_path)
    for state in (snapshot(1.0).state, Unwritable(2.0)):
        keeper.keep(Snapshot(state, "small"))
        assert keeper.finish(30)
        assert kept(tmp_path) == 1.0
        assert not (tmp_path / "unfinished").exists()
    keeper.keep(snapshot(3.0))
    assert keeper.finish(30)
    assert kept(tmp_path) == 3.0


TRAINER = """
import pathlib, signal, sys, time
mark, heard = map(pathlib.Path, sys.argv[1:])
def stop(*_):
    heard.write_text("in the middle" if mark.exists() else "after")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print(flush=True)
input()  # the test says when
mark.unlink()
time.sleep(60)
"""


@pytest.fixture
def trainer(tmp_path):
    """A process that writes a snapshot until told to go on, and where it says how it ended."""
    mark = RunFolder(tmp_path).unfinished_snapshot("duck")
    mark.parent.mkdir(parents=True)
    mark.touch()
    command = [sys.executable, "-c", TRAINER, str(mark), str(tmp_path / "heard")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process, mark, tmp_path / "heard"
        process.kill()


def test_the_end_of_a_session_waits_for_the_snapshot(trainer):
    process, mark, heard = trainer
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:

        def saving():
            if other.poll() is not None and not process.stdin.closed:  # it was asked first
                process.stdin.write(b"\n")
                process.stdin.close()
            return mark.exists()

        end([process], [other], saving, 30.0)
        assert other.wait(timeout=10) == -signal.SIGTERM
    assert process.wait(timeout=10) == 0
    assert heard.read_text() == "after"


def test_a_snapshot_that_takes_too_long_is_given_up(trainer):
    process, mark, heard = trainer
    end([process], [], mark.exists, 0.1)
    assert process.wait(timeout=10) == 0
    assert heard.read_text() == "in the middle"
