"""What a run's events and steps say, as rows for a tracker: values by name, at a moment.

Plain values in, plain values out; `tracking.py` reads the files and knows the trackers.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from uncurtail.core.events import (
    CoordinatorStarted,
    Evaluated,
    Event,
    RoundCommitted,
    RoundOpened,
    RoundSkipped,
    SiteReleased,
    Trouble,
    UpdateRejected,
    WindowClosed,
    WindowOpened,
)
from uncurtail.core.ledger import J_PER_KWH, Ledger


@dataclass(frozen=True, slots=True)
class Row:
    """Values that belong to one moment; `tokens` is the run's progress then."""

    t: float
    wall_s: float
    tokens: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Step:
    """A line of series/steps.csv, as far as a tracker wants it."""

    t: float
    wall_s: float
    site: str
    session: int
    round: int
    loss: float
    tokens: int


@dataclass(slots=True)
class Metrics:
    """What happened so far, and the rows that follow from what comes next.

    A step's place on the token axis is its round's base version plus what all sites stepped in
    the round; steps whose update is refused count until the round ends.
    """

    ledger_of: Callable[[int], Ledger | None]
    began: Event | None = None
    tokens: int = 0
    of_version: dict[int, int] = field(default_factory=dict)
    opened: dict[int, RoundOpened] = field(default_factory=dict)
    in_round: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    last: dict[str, Step] = field(default_factory=dict)

    def rows(self, events: Sequence[Event], steps: Sequence[Step]) -> list[Row]:
        """The rows of a batch, by wall time."""
        for event in events:
            self._note(event)
        batch: list[Event | Step] = sorted([*events, *steps], key=lambda item: item.wall_s)
        return [row for item in batch if (row := self._row(item)) is not None]

    def axes(self, row: Row) -> dict[str, float]:
        """Where a row stands: tokens, and hours since the run began, simulated and by the wall."""
        began = self.began or row
        return {
            "tokens": row.tokens,
            "simulated_h": (row.t - began.t) / 3600.0,
            "wall_h": (row.wall_s - began.wall_s) / 3600.0,
        }

    def _note(self, event: Event) -> None:
        self.began = self.began or event
        match event:
            case CoordinatorStarted(version=version, tokens=tokens):
                self.of_version[version] = tokens
            case RoundCommitted(version=version, tokens=tokens):
                self.of_version[version] = tokens
            case RoundOpened(round=number):
                self.opened[number] = event
            case _:
                pass

    def _row(self, item: Event | Step) -> Row | None:
        if isinstance(item, Step):
            return self._step(item)
        tokens = self.tokens
        match item:
            case CoordinatorStarted():
                self.tokens = item.tokens
                return None
            case RoundCommitted():
                self.tokens = tokens = item.tokens
                values = self._round(item)
            case Evaluated():
                tokens, values = item.tokens, {"run/val_loss": item.val_loss}
            case _:
                name = _counted(item)
                if name is None:
                    return None
                self.counts[name] += 1
                values = {name: float(self.counts[name])}
        return Row(item.t, item.wall_s, tokens, values)

    def _round(self, event: RoundCommitted) -> dict[str, float]:
        values: dict[str, float] = {
            "run/round": event.round,
            "run/version": event.version,
            "run/tokens": event.tokens,
            "run/sites": len(event.sites),
        }
        opened = self.opened.get(event.round)
        if opened is not None:
            values["run/round_s"] = event.t - opened.t
            values["run/round_wall_s"] = event.wall_s - opened.wall_s
        ledger = self.ledger_of(event.version)
        if ledger is not None:
            total = ledger.total()
            values["run/energy_kwh"] = total.energy_j / J_PER_KWH
            values["run/emissions_kg"] = total.emissions_g / 1000.0
        return values

    def _step(self, step: Step) -> Row:
        self.counts[step.site] += 1
        self.in_round[step.round] += step.tokens
        opened = self.opened.get(step.round)
        base = None if opened is None else self.of_version.get(opened.base_version)
        values = {f"{step.site}/loss": step.loss, f"{step.site}/steps": self.counts[step.site]}
        before = self.last.get(step.site)
        self.last[step.site] = step
        # the first step of a round has waited for its order: its pace says nothing
        if before and (before.session, before.round) == (step.session, step.round):
            elapsed_s = step.wall_s - before.wall_s
            if elapsed_s > 0:
                values[f"{step.site}/tokens_per_s"] = step.tokens / elapsed_s
        tokens = (self.tokens if base is None else base) + self.in_round[step.round]
        return Row(step.t, step.wall_s, tokens, values)


def _counted(event: Event) -> str | None:
    match event:
        case WindowOpened(site=site):
            return f"{site}/windows_opened"
        case WindowClosed(site=site):
            return f"{site}/windows_closed"
        case UpdateRejected(site=site):
            return f"{site}/updates_rejected"
        case SiteReleased(site=site, cause="lost" | "failed"):
            return f"{site}/sessions_lost"
        case RoundSkipped():
            return "run/rounds_skipped"
        case Trouble():
            return "run/troubles"
        case _:
            return None
