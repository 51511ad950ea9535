"""What a person sees while a run goes on: read from the run folder only.

On a terminal, one live picture; elsewhere, one line per thing worth knowing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from uncurtail.adapters import clock
from uncurtail.config import Config
from uncurtail.core.events import (
    CoordinatorStarted,
    Evaluated,
    Event,
    RoundCommitted,
    RoundSkipped,
    RunEnded,
    SitePhase,
    SiteReleased,
    StopRequested,
    Trouble,
    UpdateRejected,
    WindowCleared,
    WindowClosed,
    WindowDimmed,
    WindowOpened,
    decode,
)
from uncurtail.runfolder import READINGS, STEPS, RunFolder, lines_from

_COLOURS = {
    "training": "bold green",
    "capped": "green",
    "idle": "cyan",
    "provisioning": "yellow",
    "draining": "magenta",
    "releasing": "magenta",
    "released": "dim",
}


@dataclass(slots=True)
class _Seen:
    """What the picture shows of a site."""

    phase: str = "released"
    intensity: float | None = None
    curtailed: bool = False
    steps: int = 0
    loss: float | None = None


@dataclass(slots=True)
class _Tail:
    """The whole lines that a growing file has gained since the last look."""

    path: Path
    offset: int = 0

    def lines(self) -> list[str]:
        found, self.offset = lines_from(self.path, self.offset)
        return found


@dataclass(slots=True)
class Monitor:
    """Follows the event log, the readings and the steps, and shows what they say."""

    config: Config
    folder: RunFolder
    console: Console
    start: float
    sites: dict[str, _Seen] = field(default_factory=dict)
    tokens: int = 0
    rounds: int = 0
    val_loss: float | None = None
    t: float = 0.0
    seen_at: float = 0.0
    note: str = ""
    _live: Live | None = None
    _events: _Tail = field(init=False)
    _readings: _Tail = field(init=False)
    _steps: _Tail = field(init=False)

    def __post_init__(self) -> None:
        self._events = _Tail(self.folder.events_file)
        self._readings = _Tail(self.folder.series / "readings.csv")
        self._steps = _Tail(self.folder.series / "steps.csv")

    def poll(self) -> list[Event]:
        """The events since the last call; the picture follows."""
        events = list(self._new_events())
        for event in events:
            self._take(event)
            if self._live is None:
                line = self._line(event)
                if line:
                    self.say(line)
        self._take_series()
        if self._live is not None:
            self._live.update(self.picture())
        return events

    def skip_old(self) -> None:
        """Take in what an earlier coordinator wrote, without showing it line by line."""
        for number, event in enumerate(self._new_events()):
            if number == 0:
                self.start = event.t  # not now, where the clock starts with the run
            self._take(event)
        self._take_series()

    def say(self, text: str) -> None:
        """One line for the person."""
        self.note = text
        if self._live is None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show the live picture while this lasts, if there is a terminal for it."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self.picture(), console=self.console, refresh_per_second=4) as live:
            self._live = live
            try:
                yield
            finally:
                live.update(self.picture())
                self._live = None

    def picture(self) -> RenderableType:
        """The run at a glance."""
        table = Table(box=None, padding=(0, 2), pad_edge=False)
        for title in ("site", "gCO2/kWh", "", "phase", "steps", "loss"):
            table.add_column(title, justify="right" if title in ("gCO2/kWh", "steps") else "left")
        for name in self.config.sites:
            site = self.sites.get(name, _Seen())
            table.add_row(
                name,
                "?" if site.intensity is None else f"{site.intensity:.0f}",
                "[green]curtailed[/]" if site.curtailed else "",
                f"[{_COLOURS.get(site.phase, '')}]{site.phase}[/]",
                str(site.steps),
                "" if site.loss is None else f"{site.loss:.3f}",
            )
        return Group(self._headline(), table, Text(self.note, style="dim"))

    def _headline(self) -> RenderableType:
        val = "-" if self.val_loss is None else f"{self.val_loss:.3f}"
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %" + self._left()),
        )
        moment = datetime.fromtimestamp(self._now(), tz=UTC).strftime("%a %d %b %H:%M")
        progress.add_task(
            f"[bold]{moment} UTC[/]  {self.tokens:,} tokens  validation loss {val}  "
            f"{self.rounds} merges",
            total=1000,
            completed=round(1000 * self._share()),
        )
        return progress

    def _now(self) -> float:
        if not self.t:
            return self.start
        return self.t + (clock.monotonic() - self.seen_at) * self.config.clock.speed

    def _share(self) -> float:
        by_tokens = self.tokens / self.config.train.budget_tokens
        duration_s = self.config.run.duration_s
        by_time = 0.0 if duration_s is None else (self._now() - self.start) / duration_s
        return min(1.0, max(by_tokens, by_time))

    def _left(self) -> str:
        """By when the run ends at the latest, in minutes of the wall clock."""
        duration_s = self.config.run.duration_s
        if duration_s is None:
            return ""
        left_s = max(0.0, self.start + duration_s - self._now()) / self.config.clock.speed
        return f", {left_s / 60:.0f} min left" if left_s >= 90 else f", {left_s:.0f} s left"

    def _new_events(self) -> Iterator[Event]:
        for line in self._events.lines():
            yield decode(line)

    def _take_series(self) -> None:
        """The newest intensity, step count and loss of each site."""
        for line in self._readings.lines():
            t, site, value, *_ = line.split(",")
            if t != READINGS[0]:
                self._site(site).intensity = float(value) if value else None
        for line in self._steps.lines():
            row = dict(zip(STEPS, line.split(","), strict=True))
            if row["t"] != STEPS[0]:
                self._site(row["site"]).steps += 1
                self._site(row["site"]).loss = float(row["loss"])

    def _take(self, event: Event) -> None:
        self.t, self.seen_at = event.t, clock.monotonic()
        match event:
            case WindowOpened(site=site, intensity_g_per_kwh=value):
                self._site(site).curtailed = value < self._dim_from()
            case WindowCleared(site=site):
                self._site(site).curtailed = True
            case WindowDimmed(site=site) | WindowClosed(site=site):
                self._site(site).curtailed = False
            case SitePhase(site=site, phase=phase):
                self._site(site).phase = phase
            case RoundCommitted(tokens=tokens):
                self.tokens = tokens
                self.rounds += 1
            case Evaluated(val_loss=loss):
                self.val_loss = loss
            case CoordinatorStarted(tokens=tokens):
                self.tokens = tokens
            case Trouble(message=message):
                self.note = message[:120]
            case _:
                pass

    def _site(self, name: str) -> _Seen:
        return self.sites.setdefault(name, _Seen())

    def _dim_from(self) -> float:
        """From this intensity on an open window is for capped power only."""
        policy = self.config.policy
        caps = policy.cap_below_g_per_kwh is not None
        return policy.enter_below_g_per_kwh if caps else math.inf

    def _line(self, event: Event) -> str:
        clock_text = datetime.fromtimestamp(event.t, tz=UTC).strftime("%d %b %H:%M")
        what = describe(event, self._dim_from())
        return f"{clock_text}  {what}" if what else ""


def describe(event: Event, dim_from_g_per_kwh: float = math.inf) -> str:
    """An event in plain words; empty for those that only a machine wants."""
    return _of_a_window(event, dim_from_g_per_kwh) or _of_a_site(event) or _of_the_run(event)


def _of_a_window(event: Event, dim_from_g_per_kwh: float) -> str:
    match event:
        case WindowOpened(site=site, intensity_g_per_kwh=value) if value >= dim_from_g_per_kwh:
            return f"{site}: clean enough for capped power, {value:.0f} g/kWh"
        case WindowOpened(site=site, intensity_g_per_kwh=value):
            return f"{site}: curtailed, {value:.0f} g/kWh"
        case WindowDimmed(site=site, intensity_g_per_kwh=value):
            return (
                f"{site}: no longer curtailed, {value:.0f} g/kWh, but clean enough to go on capped"
            )
        case WindowCleared(site=site, intensity_g_per_kwh=value):
            return f"{site}: curtailed, {value:.0f} g/kWh, full power again"
        case WindowClosed(site=site, intensity_g_per_kwh=None):
            return f"{site}: nobody knows its power: not curtailed"
        case WindowClosed(site=site, intensity_g_per_kwh=value):
            return f"{site}: no longer curtailed, {value:.0f} g/kWh"
        case _:
            return ""


def _of_a_site(event: Event) -> str:
    match event:
        case SitePhase(site=site, phase=phase, session=session):
            quiet = phase in ("idle", "training", "capped")
            return "" if quiet else f"{site}: {phase} (session {session})"
        case SiteReleased(site=site, cause=cause):
            return "" if cause == "drained" else f"{site}: session {cause}"
        case UpdateRejected(site=site, steps=steps, reason=reason):
            return f"{site}: update refused ({reason}), {steps} steps to do again"
        case _:
            return ""


def _of_the_run(event: Event) -> str:
    match event:
        case CoordinatorStarted(epoch=epoch, version=version):
            return f"coordinator {epoch} at work, from model version {version}"
        case RoundCommitted(round=number, version=version, tokens=tokens, sites=sites):
            merged = " + ".join(sites)
            return f"round {number}: {merged} -> version {version}, {tokens:,} tokens"
        case RoundSkipped(round=number):
            return f"round {number}: no update, the model stays as it was"
        case Evaluated(version=version, val_loss=loss):
            return f"validation loss of version {version}: {loss:.3f}"
        case StopRequested(reason=reason):
            return f"winding down: {reason}"
        case Trouble(source=source, message=message):
            return f"{source}: {message}"
        case RunEnded(version=version, tokens=tokens):
            return f"ended with version {version}, {tokens:,} tokens"
        case _:
            return ""
