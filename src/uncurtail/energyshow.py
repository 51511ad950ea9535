"""What `uncurtail energy show` does: a region's windows as a table and a picture."""

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uncurtail import config, wiring
from uncurtail.adapters import clock
from uncurtail.adapters.traces import load_csv, regions_of
from uncurtail.core import grids
from uncurtail.core.events import iso, unix
from uncurtail.core.policy import PolicySection
from uncurtail.core.signals import Kind, Trace
from uncurtail.core.windows import DAY_S, Statistics, find, statistics
from uncurtail.errors import UserError
from uncurtail.lm.prepare import cache_folder
from uncurtail.report.regions import Region, draw, lasting
from uncurtail.report.style import percent

# A made-up grid has no end: a year has every season, and a fixed one is the same picture tomorrow.
PRESET_START = "2026-01-01T00:00:00+00:00"
SYNTHETIC_S = 365.0 * DAY_S


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be shown: an experiment, a CSV file or a preset, some regions of it, where to."""

    what: Path
    overrides: list[str]
    regions: list[str]
    utc_offset_h: float | None
    out: Path | None


@dataclass(frozen=True, slots=True)
class _Grids:
    name: str
    traces: dict[str, Trace]
    utc_offsets_h: dict[str, float]
    policy: PolicySection
    since: float
    until: float


def show(request: Request, console: Console, *, as_json: bool) -> None:
    """Print the table and where the picture is, or one JSON object (a picture only with `out`).

    Raises:
        UserError: There is no such thing, region or time.
    """
    found = _open(request)
    regions = []
    for name in _chosen(found, request.regions):
        offset = found.utc_offsets_h[name] if request.utc_offset_h is None else request.utc_offset_h
        try:
            windows = find(found.traces[name], found.policy, found.since, found.until)
        except ValueError:
            span = f"{iso(found.since)} to {iso(found.until)}"
            raise UserError(f"{found.name}: {name} knows nothing of {span}") from None
        regions.append(Region(name, windows, statistics(windows, offset), offset))
    picture = request.out or (None if as_json else _usual_place(found.name))
    if picture is not None:
        _draw(regions, found, picture)
    if as_json:
        console.print_json(json.dumps(_as_json(found, regions, picture)))
        return
    console.print(_table(regions))
    console.print(_legend(found, regions), style="dim", highlight=False)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


def _open(request: Request) -> _Grids:
    what = request.what
    if what.suffix == ".csv":
        return _of_file(request)
    if str(what) in grids.PRESETS and not what.exists():
        return _of_preset(request)
    return _of_experiment(request)


def _of_file(request: Request) -> _Grids:
    try:
        names = regions_of(request.what)
        traces = load_csv(request.what, request.regions or names, allow_gaps=True)
    except ValueError as error:
        raise UserError(str(error)) from None
    first = next(iter(traces.values()))
    start, end = float(first.times[0]), first.end
    policy = _policy(request)
    return _Grids(request.what.stem, traces, dict.fromkeys(traces, 0.0), policy, start, end)


def _of_preset(request: Request) -> _Grids:
    name, start = str(request.what), unix(PRESET_START)
    trace = grids.synthetic(name, seed=0, start=start, duration_s=SYNTHETIC_S)
    return _Grids(name, {name: trace}, {name: 0.0}, _policy(request), start, start + SYNTHETIC_S)


def _of_experiment(request: Request) -> _Grids:
    settings = config.load(request.what, request.overrides)
    start = wiring.start_time(settings, clock.wall())
    if settings.energy.source == "synthetic":
        run = settings.run.model_copy(update={"duration_s": SYNTHETIC_S})
        settings = settings.model_copy(update={"run": run})
    traces = wiring.traces(settings, start)
    end = start + SYNTHETIC_S
    if settings.energy.source == "csv":
        start = min(float(trace.times[0]) for trace in traces.values())
        end = max(trace.end for trace in traces.values())
    offsets = {name: site.utc_offset_h for name, site in settings.sites.items()}
    return _Grids(settings.name, traces, offsets, settings.policy, start, end)


def _policy(request: Request) -> PolicySection:
    """The usual thresholds, with `--set policy.*` applied."""
    body: dict[str, Any] = {}
    for override in request.overrides:
        config.apply_override(body, override)
    return config.section(PolicySection, body.pop("policy", {}), "policy")


def _chosen(found: _Grids, wanted: list[str]) -> list[str]:
    for name in wanted:
        if name not in found.traces:
            near = difflib.get_close_matches(name, found.traces, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{found.name} has no region {name}, it has {', '.join(found.traces)}{hint}"
            )
    return wanted or list(found.traces)


def _usual_place(name: str) -> Path:
    folder = cache_folder() / "energy" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.png"


def _draw(regions: list[Region], found: _Grids, path: Path) -> None:
    kind = _kind(found)
    below = found.policy.enter_below_g_per_kwh
    whose = f"{regions[0].name} is" if len(regions) == 1 else f"the regions of {found.name} are"
    title = f"When {whose} curtailed  ({kind} intensity below {below:g} gCO₂/kWh)"
    try:
        draw(regions, title, path)
    except (OSError, ValueError) as error:  # matplotlib: no such folder, or no such format
        raise UserError(f"{path}: {error}: name another --out, ending in .png") from None


def _kind(found: _Grids) -> Kind:
    return next(iter(found.traces.values())).signal.kind


def _table(regions: list[Region]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("region", overflow="fold")
    for name in ("share", "per day", "median", "mean", "q90", "longest", "days w/o", "mostly"):
        table.add_column(name, justify="right", no_wrap=True)
    for region in regions:
        numbers = region.numbers
        quantiles = numbers.length_quantiles_min or {}
        table.add_row(
            region.name,
            percent(numbers.curtailed_share),
            f"{numbers.windows_per_day:.2f}",
            lasting(quantiles.get("q50")),
            lasting(numbers.length_mean_min),
            lasting(quantiles.get("q90")),
            lasting(numbers.longest_min),
            "-" if numbers.days_without is None else percent(numbers.days_without),
            _best_hours(numbers),
        )
    return table


def _best_hours(numbers: Statistics) -> str:
    """The hours that are curtailed at least half as often as the best one, around that one."""
    profile = numbers.hour_profile
    best = max(range(24), key=profile.__getitem__)
    if profile[best] == 0.0:
        return "-"
    first = last = best
    while last - first < 23 and profile[(first - 1) % 24] >= profile[best] / 2:
        first -= 1
    while last - first < 23 and profile[(last + 1) % 24] >= profile[best] / 2:
        last += 1
    return "any" if last - first == 23 else f"{first % 24:02}-{(last + 1) % 24:02} h"


def _legend(found: _Grids, regions: list[Region]) -> str:
    policy, days = found.policy, regions[0].numbers.days
    unknown = max(1.0 - region.numbers.known_share for region in regions)
    said = f"; up to {percent(unknown)} of the time unknown" if unknown > 0.0005 else ""
    span = f"{days:,.0f} days" if days >= 2.0 else f"{days * 24.0:.0f} hours"
    hours = "local" if any(region.utc_offset_h for region in regions) else "UTC"
    return (
        f"{span} from {iso(regions[0].windows.since)[:16]} UTC, {_kind(found)} intensity; a window "
        f"opens below {policy.opens_below_g_per_kwh:g} and closes above "
        f"{policy.closes_above_g_per_kwh:g} gCO2/kWh; hours are {hours}{said}"
    )


def _as_json(found: _Grids, regions: list[Region], picture: Path | None) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": _kind(found),
        "enter_below_g_per_kwh": found.policy.enter_below_g_per_kwh,
        "leave_above_g_per_kwh": found.policy.leave_above_g_per_kwh,
        "picture": None if picture is None else str(picture),
        "regions": {
            region.name: {
                "since": iso(region.windows.since),
                "until": iso(region.windows.until),
                "utc_offset_h": region.utc_offset_h,
                **asdict(region.numbers),
            }
            for region in regions
        },
    }
