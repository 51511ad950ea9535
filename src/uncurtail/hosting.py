"""A whole run in a ServerApp that `flwr run` started: it coordinates, and has a supervisor.

The SuperLink and the SuperExec are the user's. The supervisor (`attending.py`) is a child of this
process: it prepares the run folder, brings up the rest and keeps it alive. Whichever of the two
ends, the other clears up and ends; the run goes on with the next `flwr run` of the same experiment.
"""

import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uncurtail import config, wiring
from uncurtail.adapters import children, clock, gpu_limits
from uncurtail.adapters.flower_server import PostOffice
from uncurtail.adapters.redis import reachable
from uncurtail.coordinator import DeposedError, coordinate
from uncurtail.errors import UserError
from uncurtail.runfolder import SUPERVISOR, RunFolder, newest

LOOK_EVERY_S = 0.2
# What an error of ours begins with, and how much is read to find it.
PREFIX = "uncurtail: "
TAIL_BYTES = 4096
# Drained: the run can go on, and nothing went wrong.
STOPPED = 130


@dataclass(frozen=True, slots=True)
class Request:
    """What to run, and where run folders go: all of it as seen from this process."""

    experiment: Path
    settings: tuple[str, ...]
    runs: Path

    @classmethod
    def of(
        cls, experiment: Path, settings: Iterable[str], given: Mapping[str, object]
    ) -> "Request":
        """What an app carries, with what `flwr run --run-config` gives for `set` and `runs`."""
        more = shlex.split(str(given["set"]))
        return cls(experiment, (*settings, *more), Path(str(given["runs"])))

    def command(self) -> list[str]:
        """How the supervisor of the run that this process coordinates is started."""
        command = [sys.executable, "-m", "uncurtail", "flower", "attend", str(os.getpid())]
        command += [str(self.experiment), "--runs", str(self.runs)]
        return command + [part for setting in self.settings for part in ("--set", setting)]


class Attendant:
    """The supervisor as a child of this process; what it says, this process says."""

    def __init__(self, command: list[str]) -> None:
        """Start it. Only from the main thread: it ends with the thread that started it."""
        with tempfile.NamedTemporaryFile(prefix="uncurtail-") as output:
            # A file without a name: nothing of it is left, and a writer never waits for its reader.
            self._output = Path(output.name).open("rb")  # noqa: SIM115 - closed by `speaking`
            self._child = children.spawn(
                command,
                marks={children.ROLE: "supervisor", "COLUMNS": "160", "NO_COLOR": "1"},
                log=Path(output.name),
                dies_with_parent=False,
            )
        self._quiet = threading.Event()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Pass on what it says, in a thread, for as long as this lasts; to the last line."""
        thread = threading.Thread(target=self._speak, name="attendant", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._quiet.set()
            thread.join()
            self._output.close()

    def begun(self, runs: Path, name: str) -> RunFolder:
        """Wait until the run can be coordinated; its folder.

        Raises:
            UserError: It ended before that: what it said last.
        """
        while self._child.poll() is None:
            folder = newest(runs, name)
            if folder is not None and self._keeps(folder):
                return folder
            clock.pause(LOOK_EVERY_S)
        raise self._failure()

    def ended(self) -> None:
        """Wait until it has cleared up and written the report.

        Raises:
            UserError: It failed at that: what it said last.
        """
        if self._child.wait() not in (0, STOPPED):
            raise self._failure()

    def _keeps(self, folder: RunFolder) -> bool:
        if children.introduced(folder.private / SUPERVISOR) != self.pid:
            return False
        return reachable(wiring.Endpoints.load(folder).redis_url) is None

    def _failure(self) -> UserError:
        end = os.fstat(self._output.fileno()).st_size
        start = max(0, end - TAIL_BYTES)
        said = os.pread(self._output.fileno(), TAIL_BYTES, start).decode(errors="replace")
        lines = [line for line in said.splitlines() if line.strip()] or [
            "the supervisor said nothing"
        ]
        errors = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
        return UserError("\n".join(errors or lines[-1:]))

    def _speak(self) -> None:
        rest = b""
        while True:
            last = self._quiet.wait(LOOK_EVERY_S)
            whole, _, rest = (rest + self._output.read()).rpartition(b"\n")
            for line in whole.decode(errors="replace").splitlines():
                sys.stdout.write(line.rstrip() + "\n")  # Flower takes it from there, to `flwr log`
            if last:
                return


def host(post: PostOffice, request: Request) -> None:
    """Begin the run of this experiment, or go on with its newest unfinished one, until it ends.

    Raises:
        UserError: Something must be mended first, or the supervisor is gone; nothing is left.
    """
    os.umask(0o077)  # what a run writes is this user's alone
    name = config.load(request.experiment, request.settings).name
    attendant = Attendant(request.command())
    with attendant.speaking():
        folder = attendant.begun(request.runs, name)
        try:
            coordinate(post, folder)
        except DeposedError as error:
            if children.introduced(folder.private / SUPERVISOR) is None:  # else it is another's run
                clear_up(folder)
            raise UserError(
                f"{error}, or flwr run again: it goes on with {folder.run_id}"
            ) from error
        attendant.ended()


def clear_up(folder: RunFolder) -> None:
    """End what a supervisor left that was killed."""
    children.kill_marked(folder.run_id)
    for site in wiring.read_config(folder).sites:
        gpu_limits.restore(folder.site(site) / gpu_limits.RECORD)
