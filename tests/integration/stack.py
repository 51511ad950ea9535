"""A small real run: real Flower, Redis, Vessim and trainers on loopback; windows from a CSV."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from uncurtail.adapters import children
from uncurtail.core.events import Event, decode
from uncurtail.runfolder import RunFolder

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
CLEAN, DIRTY = 20.0, 500.0
# The pace of tests that wait for round after round.
QUICK = {"speed": 240.0, "round_s": 1800.0, "grace_wall_s": 8.0, "max_steps": 100}
ALWAYS = {"north": [(0, 10_000)], "south": [(0, 10_000)]}

EXPERIMENT = """\
name = "small"
seed = 3

[clock]
start = "2026-06-01T12:00:00+00:00"
speed = {speed}

[run]
duration_s = {minutes}*60

[energy]
source = "csv"
path = "{trace}"

[sites.north]
region = "north"
provision_s = 60

[sites.south]
region = "south"
provision_s = 60

[rounds]
length_s = {round_s}
max_steps = {max_steps}
evaluate_every = 3
grace_wall_s = {grace_wall_s}

[model]
depth = 1
vocab_size = 1024
sequence_length = 64

[data]
source = "grammar"
documents = 3000

[train]
budget_tokens = 50_000_000
batch_sequences = 4
val_sequences = 16
"""


def write_trace(path: Path, minutes: int, windows: dict[str, list[tuple[int, int]]]) -> None:
    """A CSV of 5-minute values, clean inside the windows (minutes from the start), else dirty."""
    rows = ["time," + ",".join(windows)]
    for minute in range(0, minutes + 120, 5):
        values = [
            CLEAN if any(a <= minute < b for a, b in spans) else DIRTY for spans in windows.values()
        ]
        moment = (START + timedelta(minutes=minute)).isoformat()
        rows.append(",".join([moment, *map(str, values)]))
    path.write_text("\n".join(rows) + "\n")


@dataclass
class SmallRun:
    """One `uncurtail run` as a child process, and its folder once there is one."""

    home: Path
    minutes: int
    windows: dict[str, list[tuple[int, int]]]
    speed: float = 120.0
    round_s: float = 900.0
    grace_wall_s: float = 20.0
    max_steps: int = 400  # fewer make shorter rounds
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        write_trace(self.home / "trace.csv", self.minutes, self.windows)
        text = EXPERIMENT.format(
            speed=self.speed,
            minutes=1,
            trace=self.home / "trace.csv",
            round_s=self.round_s,
            grace_wall_s=self.grace_wall_s,
            max_steps=self.max_steps,
        ).replace("1*60", str(self.minutes * 60))
        (self.home / "small.toml").write_text(text)

    @property
    def folder(self) -> RunFolder:
        (path,) = (self.home / "runs").glob("small-*")
        return RunFolder(path)

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "uncurtail", "run", str(self.home / "small.toml")]
        with (self.home / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--runs", str(self.home / "runs"), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def interrupt(self) -> None:
        """Ctrl-C."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)

    def output(self) -> str:
        return (self.home / "output").read_text()

    def wait(self, timeout_s: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def events(self) -> list[Event]:
        try:
            text = self.folder.events_file.read_text()
        except (ValueError, FileNotFoundError):
            return []
        return [decode(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def until(self, found: Callable[[list[Event]], bool], timeout_s: float) -> None:
        """Wait until the events say so."""
        give_up = time.monotonic() + timeout_s
        while not found(self.events()):
            assert self.process is not None
            assert self.process.poll() is None, f"it ended early:\n{self.output()[-3000:]}"
            assert time.monotonic() < give_up, f"it never came:\n{self.output()[-3000:]}"
            time.sleep(0.2)

    def living(self) -> list[children.Marked]:
        return children.marked(self.folder.run_id)

    def pid(self, role: str, site: str = "") -> int | None:
        """The process of a role, if it lives."""
        found = [p.pid for p in self.living() if p.role == role and p.site == site]
        return found[0] if found else None

    def coordinator(self) -> int:
        body = json.loads((self.folder.private / "coordinator.json").read_text())
        return int(body["pid"])

    def clean_up(self) -> None:
        """Leave nothing, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        for folder in (self.home / "runs").glob("small-*"):
            children.kill_marked(folder.name)


def kill(pid: int | None) -> None:
    assert pid is not None, "there is nothing to kill"
    psutil.Process(pid).kill()
