"""`uncurtail run --service`: for whoever starts it again whenever it ends, as Kubernetes does.

Starting it twice is starting it once: it goes on with the newest run of the experiment, with the
settings that this run began with, or begins one. A run that is over is never begun again by
itself, for it would be paid again: then this process only waits to be told to end.
"""

import signal
from pathlib import Path

from rich.console import Console

from uncurtail import config
from uncurtail.adapters import clock
from uncurtail.runfolder import RunFolder, newest
from uncurtail.running import carry_out, has_ended, note_settings


def serve(path: Path, overrides: list[str], runs: Path) -> int:
    """Run until the run is over, then wait; returns the exit code once told to end.

    Raises:
        UserError: Something in the input or the environment must be mended first.
    """
    # As process 1 of a container nothing ends it that it does not listen to. While the run goes
    # on the supervisor listens; before and after that, this is Ctrl-C.
    # A shell without job control has us ignore Ctrl-C where it starts us in the background.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    console = Console()
    settings = config.load(path, overrides)
    folder = newest(runs, settings.name)
    note = None if folder is None else note_settings(folder, settings, path)
    if note is not None:
        _say(console, note)
    if folder is None or not has_ended(folder):
        code = carry_out(path, settings, runs, folder)
        if code != 0:
            return code
    _say(console, f"{_name(runs, settings.name)} has ended. A new run needs another name.")
    _wait()
    return 0


def _name(runs: Path, name: str) -> str:
    folder: RunFolder | None = newest(runs, name)
    assert folder is not None
    return folder.path.name


def _wait() -> None:
    """Do nothing until SIGTERM or Ctrl-C."""
    try:
        while True:
            clock.pause(3600.0)
    except KeyboardInterrupt:
        return


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
