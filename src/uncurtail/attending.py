"""The supervisor of a run that a ServerApp coordinates, as its child: see `hosting.py`."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from uncurtail import config
from uncurtail.adapters import children
from uncurtail.config import ConfigError
from uncurtail.flowerapp import check_hosted
from uncurtail.runfolder import newest
from uncurtail.running import carry_out, has_ended, note_settings


def attend(coordinator: int, path: Path, overrides: list[str], runs: Path) -> int:
    """Go on with the newest unfinished run of an experiment, or begin one; returns the exit code.

    SIGTERM and Ctrl-C drain. The end of our parent, which coordinates, ends all at once.

    Raises:
        UserError: Something in the input or the environment must be mended first.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # until the supervisor listens
        signal.signal(number, signal.default_int_handler)
    children.be_told_of_the_end_of(coordinator)
    if not children.has_parent(coordinator):
        return 130
    settings = config.load(path, overrides)
    superlink = check_hosted(settings)
    with alone(runs, superlink):
        folder = newest(runs, settings.name)
        if folder is not None and has_ended(folder):
            folder = None
        notes = [None if folder is None else note_settings(folder, settings, path)]
        notes.append(f"To stop without losing the open round: kill -INT {os.getpid()}")
        for note in filter(None, notes):
            Console().print(note, highlight=False, soft_wrap=True)
        return carry_out(path, settings, runs, folder, coordinator)


@contextmanager
def alone(runs: Path, superlink: str) -> Iterator[None]:
    """Be the only such run of this SuperLink below `runs`, also while nothing has begun yet.

    Raises:
        ConfigError: Another is, and lives.
    """
    runs.mkdir(parents=True, exist_ok=True)
    # Held by this process alone, and by none that it starts: gone with it, however it ends.
    with (runs / f".{superlink.replace(':', '-')}.lock").open("a+", encoding="ascii") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note.seek(0)
            other = note.read()
            raise ConfigError(
                f"{superlink} has a run that flwr started already (process {other}): stop that "
                f"first, with flwr stop, or with kill -INT {other}, which drains"
            ) from None
        note.truncate(0)
        note.write(str(os.getpid()))
        note.flush()
        yield
