"""What a run left behind, read once for all checks; a file that cannot be read is named."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from uncurtail.core.commit import Commit
from uncurtail.core.events import Event, RunEnded, iso
from uncurtail.core.fleet import FleetSection, Phase, SiteSection
from uncurtail.core.leases import Interval
from uncurtail.core.ledger import Ledger, Segment
from uncurtail.core.measured import MODEL
from uncurtail.core.orders import StepReport
from uncurtail.core.policy import PolicySection, read_policy
from uncurtail.core.pricing import PriceSection
from uncurtail.core.signals import Reading
from uncurtail.runfolder import POWER, PRICES, READINGS, STEPS, WATTS, PowerRow, RunFolder

T = TypeVar("T")

# A tick is late by a second at most, and what it decides takes effect within another.
TOLERANCE_WALL_S = 2.0
# The headers of older run folders: from before readings said their kind; from before the power
# series told where a microgrid's power came from, and from before it told prices and who measured.
BEFORE = {READINGS: (READINGS[:3],), POWER: (POWER[:7], POWER[:12])}
# Problems told in full; the rest is counted.
TOLD = 3
# What a damaged file makes its readers and users raise.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    csv.Error,
)


class EvidenceError(Exception):
    """A file that a check needs is missing or damaged: which, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `passed` None: it could not be checked here, and `detail` says why."""

    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit, and the file and the bytes it was read from."""

    name: str
    data: bytes
    commit: Commit


@dataclass(frozen=True, slots=True)
class Consumed:
    """One line of a site's own record."""

    session: int
    round: int
    intervals: tuple[Interval, ...]
    steps: int
    tokens: int
    token_sha256: str


@dataclass(frozen=True, slots=True)
class Setup:
    """The parts of the resolved config that checks use; `raw` is all of it."""

    speed: float
    policy: PolicySection
    sites: dict[str, SiteSection]
    raw: dict[str, Any]

    @property
    def price_stale_after_s(self) -> float:
        """How old a price may be; a file says itself until when one holds."""
        price = self.raw.get("energy", {}).get("price")
        return PriceSection(**price).stale_s if price else math.inf

    @property
    def power_stale_after_s(self) -> float:
        """How old a measured power may be, simulated."""
        return FleetSection(**self.raw.get("fleet", {})).power_stale_after_wall_s * self.speed


class Evidence:
    """Lazy views of a run folder; each raises `EvidenceError` when its file is of no use."""

    def __init__(
        self, folder: RunFolder, *, recompute_tokens: bool = True, tolerance_s: float | None = None
    ) -> None:
        self.folder = folder
        self.recompute_tokens = recompute_tokens
        self._tolerance_s = tolerance_s

    @property
    def tolerance_s(self) -> float:
        """How much later (simulated) than what it answers to a decision may take effect."""
        if self._tolerance_s is not None:
            return self._tolerance_s
        return TOLERANCE_WALL_S * self.setup.speed

    @cached_property
    def setup(self) -> Setup:
        """The resolved config."""
        return self._read("resolved.json", self._read_setup)

    @cached_property
    def events(self) -> list[Event]:
        """The event log."""
        events = self._read("events.jsonl", self.folder.read_events)
        if not events:
            raise EvidenceError("events.jsonl holds no event: copy the run folder anew, whole")
        return events

    @property
    def ended(self) -> bool:
        """Whether the run came to its end."""
        return isinstance(self.events[-1], RunEnded)

    @cached_property
    def commits(self) -> list[StoredCommit]:
        """The commits by file name, at least one."""
        paths = sorted((self.folder.path / "commits").glob("*.json"))
        if not paths:
            raise EvidenceError("commits/ holds no commit: copy the run folder anew, whole")
        return [self._read(f"commits/{path.name}", _commit_reader(path)) for path in paths]

    @property
    def newest(self) -> Commit:
        """The newest commit."""
        return self.commits[-1].commit

    @cached_property
    def ledger(self) -> Ledger:
        """The newest commit's."""
        return Ledger.from_json(self.newest.ledger, self.setup.policy.enter_below_g_per_kwh)

    @cached_property
    def readings(self) -> dict[str, list[Reading]]:
        """Each site's readings; their times rise."""
        return self._signal("readings", READINGS, self.folder.read_readings)

    @property
    def knows_prices(self) -> bool:
        """Whether the power series tells what a kWh cost."""
        name = "series/power.csv"
        first = self._read(name, lambda: _first_line(self.folder.path / name))
        return "price_eur_per_kwh" in first.split(",")

    @cached_property
    def prices(self) -> dict[str, list[Reading]]:
        """Each site's price readings; their times rise. None where no price was asked for."""
        return self._asked_for("prices", PRICES, self.folder.read_prices)

    @cached_property
    def watts(self) -> dict[str, list[Reading]]:
        """Each site's measured powers; their times rise. None where nothing was measured."""
        return self._asked_for("watts", WATTS, self.folder.read_watts)

    @cached_property
    def measured(self) -> dict[str, list[Segment]]:
        """Each site's stretches whose power was measured."""
        return {
            site: [row.segment for row in rows if row.segment.power_from != MODEL]
            for site, rows in self.power.items()
        }

    def _asked_for(
        self, name: str, columns: tuple[str, ...], reader: Callable[[], list[Reading]]
    ) -> dict[str, list[Reading]]:
        if not self.exists(f"series/{name}.csv"):
            return {site: [] for site in self.setup.sites}
        return self._signal(name, columns, reader)

    def _signal(
        self, name: str, columns: tuple[str, ...], reader: Callable[[], list[Reading]]
    ) -> dict[str, list[Reading]]:
        found: dict[str, list[Reading]] = {site: [] for site in self.setup.sites}
        for reading in self._series(name, columns, reader):
            rows = found.setdefault(reading.site, [])
            if rows and reading.t <= rows[-1].t:
                raise EvidenceError(
                    f"series/{name}.csv: the rows of {reading.site} do not rise in time at "
                    f"{iso(reading.t)}: a line is doubled or out of order; restore the file"
                )
            rows.append(reading)
        return found

    @cached_property
    def power(self) -> dict[str, list[PowerRow]]:
        """Each site's power series, in file order."""
        found: dict[str, list[PowerRow]] = {name: [] for name in self.setup.sites}
        for row in self._series("power", POWER, self.folder.read_power):
            found.setdefault(row.segment.site, []).append(row)
        return found

    @cached_property
    def up_since(self) -> dict[str, list[float]]:
        """For each row of `power`, when its site had last left "released"; -inf for never."""
        found: dict[str, list[float]] = {}
        for site, rows in self.power.items():
            since, times = -math.inf, found.setdefault(site, [])
            for segment in (row.segment for row in rows):
                since = segment.end if segment.phase == Phase.RELEASED else since
                times.append(since)
        return found

    @cached_property
    def steps(self) -> list[tuple[float, StepReport]]:
        """Every inner step that was reported, with its simulated time."""
        return self._series("steps", STEPS, self.folder.read_steps)

    def consumed(self, site: str) -> list[Consumed]:
        """A site's own record of what it trained."""
        name = f"sites/{site}/consumed.jsonl"
        return self._read(
            name,
            lambda: _CONSUMED.validate_json(
                json.dumps(self.folder.read_consumed(site)), strict=True
            ),
        )

    def exists(self, name: str) -> bool:
        """Whether the run folder has this file."""
        return (self.folder.path / name).is_file()

    def read_json(self, name: str) -> dict[str, Any]:
        """A file that holds one JSON object."""
        text = (self.folder.path / name).read_text
        return self._read(name, lambda: _JSON_OBJECT.validate_python(json.loads(text("utf-8"))))

    def _series(
        self, name: str, columns: tuple[str, ...], reader: Callable[[], list[T]]
    ) -> list[T]:
        path = f"series/{name}.csv"
        with_header = self._read(path, lambda: (_first_line(self.folder.path / path), reader()))
        headers = [columns, *BEFORE.get(columns, ())]
        if with_header[0] not in [",".join(header) for header in headers]:
            raise EvidenceError(f"{path} does not begin with its header: restore it")
        return with_header[1]

    def _read(self, name: str, reader: Callable[[], T]) -> T:
        if not self.exists(name):  # the readers of a run folder take no file for an empty one
            raise EvidenceError(f"{name} is missing: copy the run folder anew, whole")
        try:
            return reader()
        except DAMAGE as error:
            what = " ".join(str(error).split())[:200]
            raise EvidenceError(
                f"{name} cannot be read ({type(error).__name__}: {what}): restore it"
            ) from error

    def _read_setup(self) -> Setup:
        raw: dict[str, Any] = json.loads(self.folder.resolved.read_text(encoding="utf-8"))
        return Setup(
            speed=float(raw["clock"]["speed"]),
            policy=read_policy(raw["policy"]),
            sites={name: SiteSection(**body) for name, body in raw["sites"].items()},
            raw=raw,
        )


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().rstrip("\n")


def judged(problems: Sequence[str], fine: str) -> Finding:
    """Failed with the first problems, or passed with what is fine."""
    if not problems:
        return Finding(True, fine)
    more = len(problems) - TOLD
    return Finding(False, "; ".join(problems[:TOLD]) + (f"; and {more} more" if more > 0 else ""))


def agree(left: float | None, right: float | None, *, relative: float, absolute: float) -> bool:
    """Equal within relative or absolute tolerance, whichever is larger; NaN agrees with nothing.

    What is unknown agrees with what is unknown, and with nothing else.
    """
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=relative, abs_tol=absolute)


def _commit_reader(path: Path) -> Callable[[], StoredCommit]:
    def read() -> StoredCommit:
        data = path.read_bytes()
        Commit.decode(data)  # refuses unknown keys
        return StoredCommit(
            path.name, data, _COMMIT.validate_json(data, strict=True)
        )  # checks every type

    return read


_COMMIT = TypeAdapter(Commit)
_CONSUMED = TypeAdapter(list[Consumed])
_JSON_OBJECT = TypeAdapter(dict[str, Any])
