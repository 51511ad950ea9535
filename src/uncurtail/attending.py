"""The supervisor of a run that a ServerApp coordinates, as its child: see `hosting.py`."""

import os
import signal
from pathlib import Path

from rich.console import Console

from uncurtail import config
from uncurtail.adapters import children
from uncurtail.flowerapp import check_hosted
from uncurtail.runfolder import newest
from uncurtail.running import carry_out, has_ended, note_settings


def attend(coordinator: int, path: Path, overrides: list[str], runs: Path) -> int:
    """Go on with the newest unfinished run of an experiment, or begin one; returns the exit code.

    SIGTERM and Ctrl-C drain. The end of our parent, which coordinates, ends all at once.

    Raises:
        UserError: Something in the input or the environment must be mended first.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the supervisor listens
    children.be_told_of_the_end_of(coordinator)
    if not children.has_parent(coordinator):
        return 130
    settings = config.load(path, overrides)
    check_hosted(settings)
    folder = newest(runs, settings.name)
    if folder is not None and has_ended(folder):
        folder = None
    notes = [None if folder is None else note_settings(folder, settings, path)]
    notes.append(f"To stop without losing the open round: kill -INT {os.getpid()}")
    for note in filter(None, notes):
        Console().print(note, highlight=False, soft_wrap=True)
    return carry_out(path, settings, runs, folder, coordinator)
