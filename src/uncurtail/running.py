"""What the commands do: from arguments to a run folder and back to words."""

import importlib.metadata
import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from uncurtail import __version__, config, tracking, wiring
from uncurtail.adapters import clock
from uncurtail.config import Config, ConfigError
from uncurtail.core.events import RunEnded
from uncurtail.datanote import note_data
from uncurtail.listening import check_port
from uncurtail.monitor import Monitor
from uncurtail.provisioning import check as check_fleet
from uncurtail.provisioning import release_wall_s
from uncurtail.runfolder import RunFolder, newest, write_atomic

# An order and its answer through Flower 1.41 take 3-6 s on loopback, more on a busy machine.
SHORT_ROUND_WALL_S = 10.0
DEFAULT_RUNS = Path("runs")


def run_experiment(path: Path, overrides: list[str], runs: Path, *, resume: bool) -> int:
    """Run or resume an experiment; returns the exit code.

    Raises:
        UserError: Something in the input or the environment must be mended first.
    """
    settings = config.load(path, overrides)
    folder = _resumable(runs, settings) if resume else None
    if folder is not None and overrides:
        raise ConfigError(
            f"a run goes on with the settings that it began with ({folder.resolved.name}): "
            "leave out --set, or leave out --resume for a new run"
        )
    return carry_out(path, settings, runs, folder)


def carry_out(
    path: Path,
    settings: Config,
    runs: Path,
    folder: RunFolder | None,
    coordinator: int | None = None,
) -> int:
    """Begin a run with these settings, or go on with the one in `folder` as it began.

    With `coordinator`, our parent is a ServerApp that `flwr run` started, and coordinates.

    Raises:
        UserError: Something in the input or the environment must be mended first.
    """
    from uncurtail.supervisor import prepare

    going_on = folder is not None
    if folder is not None:
        settings = wiring.read_config(folder)
    start = wiring.start_time(settings, clock.wall())
    wiring.check_energy(settings, start)
    check_fleet(settings)
    tracking.check(settings.tracking)
    _check_room(settings, runs)
    check_port(settings)
    console = Console()
    data = _prepare_data(settings, console)
    if folder is None:
        folder = _create(path, settings, runs)
    note_data(folder.path, data)
    monitor = Monitor(settings, folder, console, start)
    if going_on:
        monitor.skip_old()
    supervisor = prepare(settings, folder, monitor, str(data), coordinator)
    console.print(f"Run folder: {folder.path}", highlight=False, soft_wrap=True)
    note = short_rounds(settings)
    if note is not None:
        console.print(note, style="yellow", highlight=False, soft_wrap=True)
    ended: RunEnded | None = None
    try:
        with monitor.showing():
            ended = supervisor.run()
    finally:
        if ended is None and release_wall_s(settings):
            console.print(
                "Machines may be left. Resume the run, or delete them with: uncurtail fleet "
                f"release {folder.path}",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
    if coordinator is not None and ended is None:  # nobody waits for the report of what was cut off
        return 130
    again = f"uncurtail run {path} --resume"
    if runs != DEFAULT_RUNS:
        again += f" --runs {runs}"
    if coordinator is not None:
        again = "the same flwr run"
    return _conclude(folder, again, ended, console)


def note_settings(folder: RunFolder, settings: Config, path: Path) -> str | None:
    """What to say where a run that goes on was asked to do so with other settings, or None."""
    if wiring.read_config(folder) == settings:
        return None
    return (
        f"{folder.path.name} goes on with the settings that it began with ({folder.resolved}), "
        f"not with those of {path}: give the experiment another name for a new run."
    )


def report_run(path: Path, *, as_json: bool) -> str:
    """Rebuild everything derived in a run folder; what to print."""
    from uncurtail.report.figures import write_figures
    from uncurtail.report.page import write_report
    from uncurtail.report.summary import write_summary

    folder = _open(path)
    summary = write_summary(folder)
    write_figures(folder)
    if as_json:
        return json.dumps(summary)
    return f"{write_report(folder, summary)}\nNext: open it in a browser."


def verify_run(path: Path, *, as_json: bool) -> tuple[bool, str]:
    """Check a run folder; whether nothing is broken, and what to print."""
    from uncurtail.verify import report_lines, to_json, verify

    checks = verify(_open(path))
    passed = all(check.passed is not False for check in checks)
    if as_json:
        return passed, json.dumps(to_json(checks))
    return passed, "\n".join(report_lines(checks))


def short_rounds(settings: Config) -> str | None:
    """What to say of rounds that are too short for Flower, or None."""
    length_wall_s = settings.rounds.length_s / settings.clock.speed
    if length_wall_s >= SHORT_ROUND_WALL_S:
        return None
    return (
        f"Note: a round lasts {length_wall_s:.1f} s by the wall clock, a Flower message takes "
        "3-6 s: sites will mostly wait. Raise rounds.length_s, or lower clock.speed."
    )


def _open(path: Path) -> RunFolder:
    folder = RunFolder(path)
    if not folder.resolved.is_file():
        raise ConfigError(f"{path} is no run folder: name one below runs/")
    return folder


def _resumable(runs: Path, settings: Config) -> RunFolder:
    folder = newest(runs, settings.name)
    if folder is None:
        raise ConfigError(f"no run of {settings.name} below {runs}: leave out --resume")
    if has_ended(folder):
        raise ConfigError(f"{folder.path.name} has ended: leave out --resume for a new run")
    return folder


def has_ended(folder: RunFolder) -> bool:
    """Whether a run is over for good: one that a user stopped can go on."""
    events = folder.read_events()
    return bool(events) and isinstance(events[-1], RunEnded) and events[-1].reason != "user"


def _create(path: Path, settings: Config, runs: Path) -> RunFolder:
    stamp = datetime.fromtimestamp(clock.wall(), tz=UTC).strftime("%Y%m%d-%H%M%S")
    folder = RunFolder(runs / f"{settings.name}-{stamp}")
    if folder.path.exists():
        raise ConfigError(f"{folder.path} exists: try again in a second")
    folder.create()
    for site in settings.sites:
        folder.site(site).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder.experiment)
    write_atomic(folder.resolved, config.dump(settings))
    versions: dict[str, Any] = {
        "uncurtail": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {
            item.metadata["Name"]: item.version for item in importlib.metadata.distributions()
        },
    }
    write_atomic(folder.versions, json.dumps(versions, indent=1, sort_keys=True))
    return folder


def _check_room(settings: Config, runs: Path) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(runs).free
    if free < settings.store.min_free_bytes:
        raise ConfigError(
            f"{runs.resolve()} has {free / 1e9:.1f} GB free, a run needs "
            f"{settings.store.min_free_bytes / 1e9:.1f} (store.min_free_bytes): make room, or "
            "choose another place with --runs"
        )


def _prepare_data(settings: Config, console: Console) -> Path:
    from uncurtail.datacommands import prepare_data

    return prepare_data(settings, None, console)


def _conclude(folder: RunFolder, again: str, ended: RunEnded | None, console: Console) -> int:
    from uncurtail.report.figures import write_figures
    from uncurtail.report.page import write_report
    from uncurtail.report.summary import write_summary
    from uncurtail.report.terminal import summary_table

    with console.status("Writing the report"):
        summary = write_summary(folder)
        write_figures(folder)
        write_report(folder, summary)
    console.print(summary_table(summary, folder))
    if ended is None or ended.reason == "user":
        console.print(f"Stopped. Resume with: {again}", highlight=False, soft_wrap=True)
        return 130
    console.print(f"Next: uncurtail verify {folder.path}", highlight=False, soft_wrap=True)
    return 0
