"""What `uncurtail energy fetch` does: a source's past as a CSV trace, with the user's own account.

What a source tells is often licensed to the user alone: it goes into the user's cache folder, or
where the user says, and nowhere else.
"""

import csv
import hashlib
import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from uncurtail import config, sourcing
from uncurtail.adapters import clock
from uncurtail.adapters.daycache import DAY_S, DayCache, days_between, settled
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.sources import Point, Source
from uncurtail.adapters.traces import MAX_GAP_STEPS
from uncurtail.adapters.watttime import WattTime
from uncurtail.config import Config
from uncurtail.core.events import iso, unix
from uncurtail.core.signals import Kind
from uncurtail.energysection import EnergySection
from uncurtail.errors import UserError
from uncurtail.lm.prepare import cache_folder
from uncurtail.runfolder import write_atomic

ATTEMPTS = 5
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 120.0
USUAL_DAYS = 31
AGAIN = "run it again, it goes on where it stopped"

Rows = dict[str, dict[float, float]]  # by region: time to value
Advance = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to fetch. `at` is latitude,longitude in place of a region; times are ISO 8601."""

    experiment: Path | None
    overrides: list[str]
    source: str | None
    regions: list[str]
    at: str | None
    start: str | None
    end: str | None
    out: Path | None


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    settings: Config | None
    energy: EnergySection
    source: Source


def fetch(request: Request, console: Console) -> str:
    """Fetch what is not in the cache yet, write the CSV; what to print.

    Raises:
        UserError: Something about the request, the account, the network or the disk must be
            mended first. What was fetched until then is kept.
    """
    settings = None
    if request.experiment is not None:
        overrides = [o for o in request.overrides if not o.startswith("energy.")]
        settings = config.load(request.experiment, overrides)
    energy = _energy(request, settings)
    source = sourcing.live_source(energy)
    regions = _regions(request, settings, source)
    start, end = _span(request)
    rows: Rows = {}
    with _bar(console, len(regions) * len(days_between(start, end))) as advance:
        for region in regions:
            cache = None
            if energy.source != "vessim":  # a simulation's past is another at its next start
                cache = DayCache(cache_folder() / "energy", _identity(energy, source), region)
            points = _region(source, region, days_between(start, end), cache, advance)
            rows[region] = {
                point.t: point.value
                for point in points
                if start <= point.t < end and source.signal.plausible(point.value)
            }
    times = sorted(set.intersection(*(set(values) for values in rows.values())))
    if len(times) < 2:
        raise UserError(
            f"{source.name} has {len(times)} values of {', '.join(regions)} between {iso(start)} "
            f"and {iso(end)}: ask for other --start and --end, or for one region at a time"
        )
    out = request.out or _usual_place(_identity(energy, source), regions, start, end)
    _write(out, rows, times)
    return _told(_Job(request, settings, energy, source), rows, times, out)


def _energy(request: Request, settings: Config | None) -> EnergySection:
    """The energy section: the experiment's, `--set energy.*`, and `--source`."""
    body: dict[str, Any] = {}
    if settings is not None:
        body["energy"] = settings.energy.model_dump()
    for override in request.overrides:
        if override.startswith("energy."):
            config.apply_override(body, override)
    energy = body.setdefault("energy", {})
    if request.source is not None:
        energy["source"] = request.source
    section = config.section(EnergySection, energy, "energy")
    if not section.live:
        raise UserError(
            f"energy.source is {section.source!r}, which needs no fetching: name another, as "
            "--source watttime"
        )
    return section


def _regions(request: Request, settings: Config | None, source: Source) -> list[str]:
    regions = list(request.regions)
    if request.at is not None:
        regions.append(_region_at(request.at, source))
    if not regions and settings is not None:
        regions = [site.region for site in settings.sites.values() if site.region is not None]
    if not regions:
        raise UserError("no region is named: add --region NAME, as the source names it")
    return list(dict.fromkeys(regions))


def _region_at(place: str, source: Source) -> str:
    try:
        latitude, longitude = map(float, place.split(","))
    except ValueError:
        raise UserError(f"--at {place}: write LATITUDE,LONGITUDE, as 37.4,-122.1") from None
    if not isinstance(source, WattTime):
        raise UserError(f"{source.name} finds no region by place: name it with --region")
    try:
        return source.region_of(latitude, longitude)
    except SourceError as error:
        raise UserError(str(error)) from None


def _span(request: Request) -> tuple[float, float]:
    """From --start to --end; a past month if nothing is said, never beyond now."""
    now = clock.wall()
    end = min(now, _time(request.end, "--end")) if request.end else now // DAY_S * DAY_S
    start = _time(request.start, "--start") if request.start else end - USUAL_DAYS * DAY_S
    if start >= end:
        raise UserError(f"--start {iso(start)} is not before --end {iso(end)}: nothing to fetch")
    return start, end


def _time(text: str, option: str) -> float:
    """A date is its midnight, UTC."""
    try:
        if len(text) == len("2026-01-31"):
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        return unix(text)
    except ValueError as error:
        raise UserError(
            f"{option} {text}: {error}: write 2026-01-31 or a time with offset"
        ) from None


def _identity(energy: EnergySection, source: Source) -> tuple[str, ...]:
    """All that decides the values but region and time."""
    address = {
        "watttime": (energy.watttime_url,),
        "electricitymaps": (energy.electricitymaps_url,),
        "prometheus": (energy.prometheus_url or "", energy.prometheus_query or ""),
        "vessim": (energy.vessim_url or "", energy.vessim_signal),
    }[energy.source]
    return (energy.source, source.signal.kind, *address)


def _region(
    source: Source, region: str, days: list[int], cache: DayCache | None, advance: Advance
) -> list[Point]:
    """A region's values: from the cache, and in as few calls as the source allows."""
    found = {day: cache.load(day) if cache else None for day in days}
    advance(sum(points is not None for points in found.values()))
    missing = [day for day in days if found[day] is None]
    for chunk in _chunks(missing, source.longest_s):
        start, end = chunk[0] * DAY_S, min((chunk[-1] + 1) * DAY_S, clock.wall())
        by_day: dict[int, list[Point]] = {day: [] for day in chunk}
        for point in _insist(source, region, start, end):
            by_day[int(point.t // DAY_S)].append(point)
        for day, points in by_day.items():
            found[day] = points
            if cache is not None and settled(day, points, clock.wall()):
                _keep(cache, day, points)
        advance(len(chunk))
    return [point for day in days for point in found[day] or []]


def _chunks(days: list[int], longest_s: float) -> Iterator[list[int]]:
    """Runs of days without a hole, each no longer than one call may span."""
    most = int(min(longest_s, 366 * DAY_S) // DAY_S)
    run: list[int] = []
    for day in days:
        if run and (day != run[-1] + 1 or len(run) == max(1, most)):
            yield run
            run = []
        run.append(day)
    if run:
        yield run


def _insist(source: Source, region: str, start: float, end: float) -> list[Point]:
    """Ask again, after a pause, while the server is busy or fails."""
    jitter = random.Random(f"{region}{start}")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return source.history(region, start, end)
        except SourceError as error:
            mendable = error.status is None or error.status == 429 or error.status >= 500
            if attempt == ATTEMPTS or not mendable:
                raise UserError(f"{error}{f': {AGAIN}' if mendable else ''}") from None
            pause_s = FIRST_PAUSE_S * 2.0 ** (attempt - 1) * jitter.uniform(0.5, 1.0)
            asked_s = error.retry_after_s or 0.0
            if asked_s > LONGEST_PAUSE_S:
                raise UserError(
                    f"{error}, and no sooner than in {asked_s:.0f} s: {AGAIN}"
                ) from None
            clock.pause(max(pause_s, asked_s))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _keep(cache: DayCache, day: int, points: Sequence[Point]) -> None:
    try:
        cache.save(day, points)
    except OSError as error:
        raise UserError(
            f"{cache.folder}: {error.strerror}: make room, or point XDG_CACHE_HOME elsewhere"
        ) from None


def _usual_place(identity: tuple[str, ...], regions: list[str], start: float, end: float) -> Path:
    """A name of its own for each signal: fetching one writes over no other."""
    sha = hashlib.sha256("\n".join([*identity, *regions]).encode()).hexdigest()[:8]
    source, kind, *_ = identity
    names = "-".join(regions)[:60]
    span = f"{iso(start)[:10]}-{iso(end)[:10]}"
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{names}-{span}")
    return cache_folder() / "energy" / f"{source}-{kind}-{safe}-{sha}.csv"


def _write(out: Path, rows: Rows, times: list[float]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["time", *rows])
    for t in times:
        stamp = iso(t).replace(".000+", "+")
        writer.writerow([stamp, *(f"{values[t]:.7g}" for values in rows.values())])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}: name another --out") from None


def _told(job: _Job, rows: Rows, times: list[float], out: Path) -> str:
    signal = job.source.signal
    left_out = len(set().union(*rows.values())) - len(times)
    step_s = sorted(b - a for a, b in pairwise(times))[len(times) // 2 - 1]
    gaps = [b - a for a, b in pairwise(times) if b - a > MAX_GAP_STEPS * step_s]
    lines = [
        f"{out}: {len(times):,} rows of {', '.join(rows)}, {signal.kind} "
        f"{signal.unit}, {iso(times[0])[:16]} to {iso(times[-1])[:16]} UTC"
    ]
    if left_out:
        lines.append(f"{left_out:,} times are left out: not every region has a value there")
    if gaps:
        hours = (sum(gaps) - len(gaps) * step_s) / 3600.0
        count = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
        lines.append(f"{count}, {hours:.1f} h in all: unknown there")
    if job.energy.source in ("watttime", "electricitymaps"):
        lines.append("These values are licensed to your account: do not publish or commit them.")
    keys = ["energy.source=csv", f"energy.path={out}"]
    keys += ["energy.allow_gaps=true"] if gaps else []
    keys += [f"energy.kind={signal.kind}"] if signal.kind is not Kind.MARGINAL else []
    keys += _clock_keys(job.settings, times)
    keys += _region_keys(job.settings, list(rows))
    experiment = job.request.experiment or "EXPERIMENT"
    lines.append(f"Look: uncurtail energy show {out}")
    lines.append(f"Next: uncurtail run {experiment} " + " ".join(f"--set {key}" for key in keys))
    return "\n".join(lines)


def _clock_keys(settings: Config | None, times: list[float]) -> list[str]:
    """A start that lies in the trace, unless the experiment's own does."""
    start = math.nan
    if settings is not None and settings.clock.start != "now":
        start = unix(settings.clock.start)
    return [] if times[0] <= start < times[-1] else [f"clock.start={iso(times[0])}"]


def _region_keys(settings: Config | None, regions: list[str]) -> list[str]:
    """A column for each site that names none of them."""
    sites = {} if settings is None else settings.sites
    return [
        f"sites.{name}.region={regions[index % len(regions)]}"
        for index, (name, site) in enumerate(sites.items())
        if site.region not in regions
    ]


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Advance]:
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:.0f}/{task.total:.0f} days"),
        progress.TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("Fetching", total=total)
        yield lambda days: bar.advance(task, days)
