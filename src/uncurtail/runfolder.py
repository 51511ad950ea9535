"""A run is a folder that explains itself: where everything lies, and how it is read and appended.

Only the coordinator writes here (and each site, its own `sites/SITE`). The commits and the objects
they name are the truth; everything else can be derived from them and from the event log.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.core.events import Event, decode, encode, iso, unix
from uncurtail.core.forecasts import Forecast
from uncurtail.core.ledger import Segment
from uncurtail.core.measured import MODEL
from uncurtail.core.orders import StepReport
from uncurtail.core.signals import EUR_PER_KWH, WATT, Kind, Reading, Signal, Trace
from uncurtail.rowfiles import (
    count_columns,
    digits,
    flow_of,
    flow_row,
    maybe,
    open_append,
    signal_row,
    whole_lines,
    write_rows,
)

# Names the run folder to every process of a run.
RUN_DIR = "UNCURTAIL_RUN_DIR"

# In private/: which process is the run's supervisor, and which its coordinator.
SUPERVISOR = "supervisor.json"
COORDINATOR = "coordinator.json"

# In sites/SITE/snapshot/: see `RunFolder.unfinished_snapshot`.
UNFINISHED_SNAPSHOT = "unfinished"

# The last three came later: a run folder without them says "marginal", published as it was known.
READINGS = ("t", "site", "intensity_g_per_kwh", "published", "kind", "source")
# The second five are of sites with a microgrid, empty for others; the last two are the price, and
# who measured the power. Older folders have the first seven alone, or the first twelve: they know
# no price, and no power but the declared one.
POWER = (
    *("start", "end", "site", "phase", "power_w", "grid_power_w", "intensity_g_per_kwh"),
    *("solar_w", "battery_w", "solar_charge_w", "grid_charge_w", "soc"),
    *("price_eur_per_kwh", "power_from"),
)
WATTS = ("t", "site", "watts", "published", "source")
PRICES = ("t", "site", "eur_per_kwh", "published", "source")
STEPS = ("t", "wall_s", "site", "session", "round", "epoch", "step", "loss", "tokens")


@dataclass(frozen=True, slots=True)
class PowerRow:
    """One segment as recorded: the ledger's, and what the energy feed drew from the grid."""

    segment: Segment
    grid_power_w: float


class RunFolder:
    """Paths and readers of a run folder. Reading drops a torn last line: a writer died there."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.experiment = self.path / "experiment.toml"
        self.resolved = self.path / "resolved.json"
        self.versions = self.path / "versions.json"
        self.events_file = self.path / "events.jsonl"
        self.series = self.path / "series"
        self.sites = self.path / "sites"
        self.private = self.path / "private"
        self.logs = self.path / "logs"
        self.gate_secret = self.private / "gate.secret"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"

    @property
    def run_id(self) -> str:
        """The run's name: the folder's."""
        return self.path.name

    def create(self) -> None:
        """Make the folder and its parts; `private` is for this user only."""
        for folder in (self.series, self.sites, self.logs, self.path / "commits"):
            folder.mkdir(parents=True, exist_ok=True)
        self.private.mkdir(mode=0o700, exist_ok=True)
        self.private.chmod(0o700)

    def site(self, name: str) -> Path:
        """What a site keeps for itself: consumed.jsonl, snapshot/, log."""
        return self.sites / name

    def unfinished_snapshot(self, site: str) -> Path:
        """A mark that lies there while the site's newest optimizer state is not on disk yet."""
        return self.site(site) / "snapshot" / UNFINISHED_SNAPSHOT

    def read_events(self) -> list[Event]:
        """All events in order."""
        return [decode(line) for line in whole_lines(self.events_file)]

    def read_readings(self) -> list[Reading]:
        """Every reading, as it arrived; an unknown one has value None."""
        return [
            Reading(
                row["site"],
                unix(row["t"]),
                maybe(row["intensity_g_per_kwh"]),
                unix(row["published"]) if row.get("published") else None,
                Signal(Kind(row.get("kind") or Kind.MARGINAL), source=row.get("source") or ""),
            )
            for row in self._rows("readings")
        ]

    def read_prices(self) -> list[Reading]:
        """Every price in EUR/kWh, as it arrived; an unknown one has value None."""
        return self._signal("prices", Kind.PRICE, EUR_PER_KWH)

    def read_watts(self) -> list[Reading]:
        """Every measured power in W, as it arrived."""
        return self._signal("watts", Kind.POWER, WATT)

    def _signal(self, name: str, kind: Kind, unit: str) -> list[Reading]:
        column = {"prices": PRICES, "watts": WATTS}[name][2]
        return [
            Reading(
                row["site"],
                unix(row["t"]),
                maybe(row[column]),
                unix(row["published"]) if row["published"] else None,
                Signal(kind, unit, row["source"]),
            )
            for row in self._rows(name)
        ]

    def read_power(self) -> list[PowerRow]:
        """Every segment of power, in order."""
        return [
            PowerRow(
                Segment(
                    row["site"],
                    row["phase"],
                    unix(row["start"]),
                    unix(row["end"]),
                    float(row["power_w"]),
                    maybe(row["intensity_g_per_kwh"]),
                    flow_of(row),
                    maybe(row.get("price_eur_per_kwh") or ""),
                    row.get("power_from") or MODEL,
                ),
                float(row["grid_power_w"]),
            )
            for row in self._rows("power")
        ]

    def read_steps(self) -> list[tuple[float, StepReport]]:
        """Every inner step that was reported, each with its simulated time."""
        return [
            (
                unix(row["t"]),
                StepReport(
                    row["site"],
                    int(row["session"]),
                    int(row["round"]),
                    int(row["epoch"]),
                    int(row["step"]),
                    float(row["loss"]),
                    int(row["tokens"]),
                    float(row["wall_s"]),
                ),
            )
            for row in self._rows("steps")
        ]

    def read_forecasts(self) -> list[dict[str, Any]]:
        """The forecasts that a live source made, one object each, in order of their arrival.

        `g_per_kwh` are [seconds after `t`, value], each holding until the next and to `until`.
        """
        return [json.loads(line) for line in whole_lines(self.series / "forecasts.jsonl")]

    def read_traces(self, end: float) -> dict[str, Trace]:
        """Each site's readings as a stepwise trace that ends at `end`."""
        by_site: dict[str, list[Reading]] = {}
        for reading in self.read_readings():
            rows = by_site.setdefault(reading.site, [])
            if not rows or reading.t > rows[-1].t:
                rows.append(reading)
        return {
            site: Trace(
                np.array([r.t for r in rows]),
                np.array([np.nan if r.value is None else r.value for r in rows]),
                end,
            )
            for site, rows in by_site.items()
        }

    def read_commits(self) -> list[Commit]:
        """The commits, oldest first.

        Raises:
            ValueError: A file is no commit.
        """
        paths = sorted((self.path / "commits").glob("[0-9]*.json"))
        return [Commit.decode(path.read_bytes()) for path in paths]

    def commit_bytes(self, version: int) -> bytes:
        """A commit as it was written."""
        return (self.path / commits.key(version)).read_bytes()

    def read_consumed(self, site: str) -> list[dict[str, Any]]:
        """A site's own append-only record of what it trained."""
        return [json.loads(line) for line in whole_lines(self.site(site) / "consumed.jsonl")]

    def _rows(self, name: str) -> Iterator[dict[str, str]]:
        lines = list(whole_lines(self.series / f"{name}.csv"))
        return csv.DictReader(lines)


class Journal:
    """The coordinator's appender: events and series. Opening drops torn last lines."""

    def __init__(self, folder: RunFolder) -> None:
        folder.create()
        self._events = open_append(folder.events_file, None)
        self._readings = open_append(folder.series / "readings.csv", READINGS)
        self._reading_columns = count_columns(folder.series / "readings.csv")
        self._power = open_append(folder.series / "power.csv", POWER)
        self._power_columns = count_columns(folder.series / "power.csv")
        self._prices = open_append(folder.series / "prices.csv", PRICES)
        self._watts = open_append(folder.series / "watts.csv", WATTS)
        self._steps = open_append(folder.series / "steps.csv", STEPS)
        self._forecasts = open_append(folder.series / "forecasts.jsonl", None)

    @property
    def _files(self) -> tuple[TextIO, ...]:
        signals = (self._readings, self._prices, self._watts, self._forecasts)
        return self._events, *signals, self._power, self._steps

    def event(self, event: Event) -> None:
        """Append one event."""
        self.events([event])

    def events(self, events: Sequence[Event]) -> None:
        """Append events that belong together, in one write: a crash leaves all of them or none."""
        self._events.write("".join(encode(event) + "\n" for event in events))
        self._events.flush()

    def offset(self) -> int:
        """Bytes of the event log so far."""
        return self._events.tell()

    def sync(self) -> None:
        """Force everything to the disk, before a commit names it."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def reading(self, reading: Reading) -> None:
        """Append one reading."""
        published = "" if reading.published is None else iso(reading.published)
        signal = reading.signal
        row = (iso(reading.t), reading.site, digits(reading.value), published)
        columns = (*row, signal.kind, signal.source)[: self._reading_columns]
        write_rows(self._readings, [columns])

    def price(self, reading: Reading) -> None:
        """Append one price."""
        write_rows(self._prices, [signal_row(reading)])

    def watts(self, reading: Reading) -> None:
        """Append one measured power."""
        write_rows(self._watts, [signal_row(reading)])

    def power(self, segments: Sequence[tuple[Segment, float]]) -> None:
        """Append one cut, every site's segment with what the feed drew (W), in one write."""
        write_rows(
            self._power,
            [
                (
                    iso(segment.start),
                    iso(segment.end),
                    segment.site,
                    segment.phase,
                    f"{segment.power_w:.10g}",
                    f"{grid_power_w:.10g}",
                    digits(segment.intensity_g_per_kwh),
                    *flow_row(segment.flow),
                    digits(segment.price_eur_per_kwh),
                    segment.power_from,
                )[: self._power_columns]
                for segment, grid_power_w in segments
            ],
        )

    def forecast(self, forecast: Forecast, made: float) -> None:
        """Append a forecast that came from outside; `made` by its source, known when issued."""
        body = {
            "t": iso(forecast.issued),
            "site": forecast.site,
            "made": iso(made),
            "until": iso(forecast.until),
            "edge_sd_s": forecast.edge_sd_s,
            "g_per_kwh": forecast.steps(),
        }
        self._forecasts.write(json.dumps(body, separators=(",", ":")) + "\n")
        self._forecasts.flush()

    def steps(self, rows: Iterable[tuple[float, StepReport]]) -> None:
        """Append inner steps, each with its simulated time."""
        write_rows(
            self._steps,
            [
                (
                    iso(t),
                    f"{row.wall_s:.3f}",
                    row.site,
                    row.session,
                    row.round,
                    row.epoch,
                    row.step,
                    f"{row.loss:.5f}",
                    row.tokens,
                )
                for t, row in rows
            ],
        )

    def close(self) -> None:
        """Flush and close."""
        for file in self._files:
            file.close()


def write_atomic(path: Path, text: str) -> None:
    """Replace a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def lines_from(
    path: Path, start: int, end: int | None = None, limit: int | None = None
) -> tuple[list[str], int]:
    """Whole lines from `start` to `end` (None: to the end, or about `limit` bytes), and where."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            wanted = limit if end is None else end - start
            data = file.read() if wanted is None else file.read(wanted)
    except FileNotFoundError:
        return [], start
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode().splitlines(), start + whole


def newest(runs: Path, name: str) -> RunFolder | None:
    """The newest run folder of an experiment, or None."""
    named = re.compile(rf"{re.escape(name)}-\d{{8}}-\d{{6}}")  # not NAME-other-..., another's
    found = sorted(
        p
        for p in runs.glob(f"{name}-*")
        if named.fullmatch(p.name) and (p / "resolved.json").is_file()
    )
    return RunFolder(found[-1]) if found else None
