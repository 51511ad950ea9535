"""What happened in a run, typed: each event is one line of `events.jsonl`.

Every event carries `t`, the simulated time in unix seconds, and `wall_s`, the wall clock in unix
seconds. `decided_by` names the function that decides that the event happens: start reading there.
"""

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, ClassVar


def iso(t: float) -> str:
    """Unix seconds as ISO 8601 with offset and milliseconds."""
    return datetime.fromtimestamp(t, tz=UTC).isoformat(timespec="milliseconds")


def unix(text: str) -> float:
    """ISO 8601 with offset as unix seconds.

    Raises:
        ValueError: The text is no time, or names no offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone: write an offset such as +00:00")
    return moment.timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at `t` (simulated) and `wall_s` (wall clock), both unix seconds."""

    t: float
    wall_s: float
    decided_by: ClassVar[str] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStarted(Event):
    """A coordinator took over: the first of a run, or after a crash or `--resume`."""

    epoch: int
    run: str
    version: int
    tokens: int
    decided_by: ClassVar[str] = "uncurtail.loop.Loop.start"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOpened(Event):
    """A site's region became curtailed."""

    site: str
    intensity_g_per_kwh: float
    decided_by: ClassVar[str] = "uncurtail.core.policy.window"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowClosed(Event):
    """A site's region is no longer curtailed, or nobody knows (intensity is null)."""

    site: str
    intensity_g_per_kwh: float | None
    decided_by: ClassVar[str] = "uncurtail.core.policy.window"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowDimmed(Event):
    """An open window is for capped power only, from now on: clean, but not curtailed.

    One that opens at `policy.enter_below_g_per_kwh` or above is dim from the start, without this.
    """

    site: str
    intensity_g_per_kwh: float
    decided_by: ClassVar[str] = "uncurtail.core.policy.window"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCleared(Event):
    """A dim window is for full power again."""

    site: str
    intensity_g_per_kwh: float
    decided_by: ClassVar[str] = "uncurtail.core.policy.window"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProvisioned(Event):
    """A session of a site was asked for; it ends with exactly one `SiteReleased`."""

    site: str
    session: int
    decided_by: ClassVar[str] = "uncurtail.core.fleet.reconcile"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePhase(Event):
    """A site's phase changed; from now on it draws `power_w`."""

    site: str
    session: int
    phase: str
    power_w: float
    decided_by: ClassVar[str] = "uncurtail.core.fleet.reconcile"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReleased(Event):
    """A session is gone and draws nothing: `cause` is drained, lost or failed."""

    site: str
    session: int
    cause: str
    decided_by: ClassVar[str] = "uncurtail.core.fleet.reconcile"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOpened(Event):
    """Sites may now join round `round`, which starts from model `base_version`."""

    round: int
    base_version: int
    deadline: float
    decided_by: ClassVar[str] = "uncurtail.core.rounds.should_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSent(Event):
    """A site was leased steps `[start, stop)` of a data epoch for a round."""

    round: int
    site: str
    session: int
    attempt: int
    intervals: list[list[int]]
    decided_by: ClassVar[str] = "uncurtail.core.rounds.joiners"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAccepted(Event):
    """A site's update counts: it consumed the first `steps` steps of its lease."""

    round: int
    site: str
    session: int
    steps: int
    tokens: int
    mean_loss: float | None
    sha256: str
    decided_by: ClassVar[str] = "uncurtail.core.rounds.judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRejected(Event):
    """A site's answer does not count; its lease is free again. `steps` is the work lost."""

    round: int
    site: str
    session: int
    steps: int
    reason: str
    decided_by: ClassVar[str] = "uncurtail.core.rounds.judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCommitted(Event):
    """The round's merged model and both ledgers became durable together."""

    round: int
    version: int
    tokens: int
    sites: list[str]
    sha256: str
    decided_by: ClassVar[str] = "uncurtail.core.rounds.should_close"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSkipped(Event):
    """The round ended without a valid update: the model stays as it was."""

    round: int
    decided_by: ClassVar[str] = "uncurtail.core.rounds.should_close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    """A site measured the validation loss (nats per token) of a model version."""

    version: int
    tokens: int
    site: str
    val_loss: float
    decided_by: ClassVar[str] = "uncurtail.core.rounds.wants_evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    """The run is winding down: `reason` is budget, duration, user, emissions or cost."""

    reason: str
    decided_by: ClassVar[str] = "uncurtail.core.ending.stop_reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble(Event):
    """Something outside failed and the run goes on without it: what, and what was done."""

    source: str
    message: str
    decided_by: ClassVar[str] = "uncurtail.troubles.Troubles.note"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """Every site is released and the last model is durable."""

    reason: str
    version: int
    tokens: int
    decided_by: ClassVar[str] = "uncurtail.loop.Loop.finish_when_drained"


EVENT_TYPES: MappingProxyType[str, type[Event]] = MappingProxyType(
    {kind.__name__: kind for kind in Event.__subclasses__()}
)


def encode(event: Event) -> str:
    """One JSON line, without the newline: time first, then the type, then its fields."""
    body = asdict(event)
    row = {"t": iso(body.pop("t")), "wall_s": round(body.pop("wall_s"), 3)}
    return json.dumps({**row, "event": type(event).__name__, **body}, allow_nan=False)


def decode(line: str) -> Event:
    """The event of one JSON line.

    Raises:
        ValueError: The line is no event of this version.
    """
    row: Any = json.loads(line)
    kind = EVENT_TYPES.get(str(row.pop("event", None))) if isinstance(row, dict) else None
    if kind is None:
        raise ValueError(f"not an event of this version: {line[:120]!r}")
    if set(row) != {f.name for f in fields(kind)}:
        raise ValueError(f"{kind.__name__} has other fields: {line[:120]!r}")
    return kind(**{**row, "t": unix(str(row["t"]))})
