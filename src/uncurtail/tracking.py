"""Metrics for people's tools: follows a run folder and hands its rows to W&B or TensorBoard.

Each tracker is a process of its own that only reads what the coordinator wrote, so one that fails,
hangs or is killed disturbs nothing; the supervisor starts it again a few times. Its cursor moves
*before* rows are handed over: nothing is logged twice, a killed tracker loses one batch at most.
The run folder has it all: `uncurtail track RUN KIND` can also be called when the run is over.
"""

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from uncurtail import wiring
from uncurtail.adapters import children, clock
from uncurtail.adapters import tensorboard as tensorboards
from uncurtail.adapters import wandb as wandbs
from uncurtail.config import Config, TrackingSection
from uncurtail.core.commit import Commit
from uncurtail.core.events import decode, unix
from uncurtail.core.ledger import Ledger
from uncurtail.errors import UserError
from uncurtail.runfolder import RUN_DIR, SUPERVISOR, RunFolder, lines_from, write_atomic
from uncurtail.trackrows import Metrics, Row, Step

Kind = Literal["wandb", "tensorboard"]

POLL_S = 0.5
# Steps are read in pieces of this size, so that a tracker that is late moves its cursor often.
PIECE_BYTES = 1 << 18
RESTARTS = 3
FINISH_S = 20.0


class Tracker(Protocol):
    """Where rows go. Everything here may raise or hang: it is alone in its process."""

    def log(
        self, number: int, values: Mapping[str, float], axes: Mapping[str, float], wall_s: float, /
    ) -> None:
        """Take row `number` of the run: values by name, its place on each axis, when it was."""
        ...

    def flush(self) -> None:
        """A batch is over."""
        ...

    def close(self) -> None:
        """No more rows will come."""
        ...


class Follower:
    """Reads what is new in a run folder and hands it to a tracker."""

    def __init__(self, folder: RunFolder, config: Config, cursor: Path) -> None:
        """Take in, without logging it, what was logged before."""
        self._folder, self._cursor = folder, cursor
        self._clean_below = config.policy.enter_below_g_per_kwh
        self._steps_file = folder.series / "steps.csv"
        self._header = ""
        self.metrics = Metrics(self._ledger)
        at = _read_cursor(cursor)
        self._events_at = self._steps_at = self._rows = 0
        self._batch(at["events"], at["steps"])

    def poll(self, tracker: Tracker) -> int:
        """Log one batch; how many rows it had."""
        rows = self._batch(None, None)
        if not rows:
            return 0
        at = {"events": self._events_at, "steps": self._steps_at}
        write_atomic(self._cursor, json.dumps(at))
        for number, row in enumerate(rows, self._rows - len(rows)):
            tracker.log(number, row.values, self.metrics.axes(row), row.wall_s)
        tracker.flush()
        return len(rows)

    def _batch(self, events_end: int | None, steps_end: int | None) -> list[Row]:
        """The rows up to these offsets. Steps are read first: a step's round is then known."""
        limit = PIECE_BYTES if steps_end is None else None
        lines, self._steps_at = lines_from(self._steps_file, self._steps_at, steps_end, limit)
        if lines and not self._header:
            self._header = lines.pop(0)
        events, self._events_at = lines_from(self._folder.events_file, self._events_at, events_end)
        rows = self.metrics.rows([decode(line) for line in events], [*self._steps(lines)])
        self._rows += len(rows)
        return rows

    def _steps(self, lines: list[str]) -> Iterator[Step]:
        for row in csv.DictReader([self._header, *lines]):
            yield Step(
                unix(row["t"]),
                float(row["wall_s"]),
                row["site"],
                int(row["session"]),
                int(row["round"]),
                float(row["loss"]),
                int(row["tokens"]),
            )

    def _ledger(self, version: int) -> Ledger | None:
        try:
            commit = Commit.decode(self._folder.commit_bytes(version))
        except (OSError, ValueError):  # not there: the row goes without energy, on purpose
            return None
        return Ledger.from_json(commit.ledger, self._clean_below)


def track(path: Path, kind: Kind) -> None:
    """Log a run until its supervisor says that it is over, or is gone; then end.

    Raises:
        UserError: No run folder, or a package or key is missing.
        Exception: Whatever the tracker raises; its process ends, the run goes on.
    """
    folder = RunFolder(path)
    if not folder.resolved.is_file():
        raise UserError(f"{path} is no run folder: name one below runs/")
    config = wiring.read_config(folder)
    tracker = _open(kind, folder, config)
    follower = Follower(folder, config, folder.private / f"tracker-{kind}.json")
    while True:
        over = _stop_file(folder).exists() or not _supervised(folder)
        if follower.poll(tracker) == 0:
            if over:
                break
            clock.pause(POLL_S)
    tracker.close()


def check(section: TrackingSection) -> None:
    """See to it, before a run starts, that its trackers can work.

    Raises:
        UserError: A package or key is missing; one line with the remedy.
    """
    if section.wandb != "off":
        wandbs.check(section.wandb, _wandb_key(section))
    if section.tensorboard:
        tensorboards.check()


def kinds(section: TrackingSection) -> list[Kind]:
    """The trackers that an experiment wants."""
    found: list[Kind] = []
    if section.wandb != "off":
        found.append("wandb")
    if section.tensorboard:
        found.append("tensorboard")
    return found


def command(folder: RunFolder, kind: Kind) -> list[str]:
    """How the supervisor starts a tracker."""
    return [sys.executable, "-m", "uncurtail", "track", str(folder.path), kind]


@dataclass(slots=True)
class Trackers:
    """The supervisor's side: starts trackers, again when they die, and ends them.

    Nothing here raises or waits while the run goes on. `procs` is the supervisor's own table.
    """

    folder: RunFolder
    kinds: Sequence[Kind]
    procs: dict[str, subprocess.Popen[bytes]]
    say: Callable[[str], None]
    command: Callable[[RunFolder, Kind], list[str]] = command
    backoff_s: float = 2.0
    starts: Counter[Kind] = field(default_factory=Counter)
    retry_at: dict[Kind, float] = field(default_factory=dict)

    def keep_alive(self) -> None:
        """Start what is not running and may be started."""
        now = clock.monotonic()
        for kind in self.kinds:
            if self._living(kind):
                continue
            if self.starts[kind] == 0:
                _stop_file(self.folder).unlink(missing_ok=True)
                self._start(kind)
            elif kind not in self.retry_at:
                self._failed(kind, now)
            elif now >= self.retry_at[kind]:
                self._start(kind)

    def finish(self, within_s: float = FINISH_S) -> None:
        """Let them log the rest, but not for ever."""
        for kind in self.kinds:
            if not self._living(kind) and 0 < self.starts[kind] <= RESTARTS:
                self._start(kind)  # the last chance for what it has not logged
        _stop_file(self.folder).touch()
        give_up = clock.monotonic() + within_s
        while (late := [k for k in self.kinds if self._living(k)]) and clock.monotonic() < give_up:
            clock.pause(0.05)
        for kind in late:
            self.procs[_role(kind)].kill()
            self.say(f"{kind} did not finish within {within_s:.0f} s (logs/{_role(kind)}.log)")

    def _living(self, kind: Kind) -> bool:
        child = self.procs.get(_role(kind))
        return child is not None and child.poll() is None

    def _start(self, kind: Kind) -> None:
        self.retry_at.pop(kind, None)
        self.starts[kind] += 1
        marks = {
            children.RUN: self.folder.run_id,
            children.ROLE: _role(kind),
            RUN_DIR: str(self.folder.path),
        }
        try:
            self.procs[_role(kind)] = children.spawn(
                self.command(self.folder, kind),
                marks=marks,
                log=self.folder.logs / f"{_role(kind)}.log",
                dies_with_parent=True,
            )
        except OSError:  # no memory, no disk: the same as a tracker that died at once
            return

    def _failed(self, kind: Kind, now: float) -> None:
        if self.starts[kind] == 1:
            self.say(
                f"{kind} tracking failed, and is tried again {RESTARTS} times at most; the run "
                f"goes on (logs/{_role(kind)}.log; later: uncurtail track RUN {kind})"
            )
        wait_s = self.backoff_s ** self.starts[kind]
        self.retry_at[kind] = now + wait_s if self.starts[kind] <= RESTARTS else float("inf")


def _open(kind: Kind, folder: RunFolder, config: Config) -> Tracker:
    if kind == "tensorboard":
        tensorboards.check()
        return tensorboards.TensorBoardTracker(folder.path)
    section = config.tracking
    mode: wandbs.Mode = "online" if section.wandb == "online" else "offline"
    key = _wandb_key(section)
    wandbs.check(mode, key)
    return wandbs.WandbTracker(
        folder.path, section.wandb_project, mode, config.model_dump(mode="json"), key
    )


def _wandb_key(section: TrackingSection) -> str | None:
    return wiring.secret(wandbs.KEY) if section.wandb == "online" else None


def _read_cursor(path: Path) -> dict[str, int]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return {"events": int(body["events"]), "steps": int(body["steps"])}
    except FileNotFoundError:
        return {"events": 0, "steps": 0}


def _supervised(folder: RunFolder) -> bool:
    return children.introduced(folder.private / SUPERVISOR) is not None


def _stop_file(folder: RunFolder) -> Path:
    return folder.private / "tracked"


def _role(kind: Kind) -> str:
    return f"track-{kind}"
