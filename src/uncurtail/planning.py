"""What `uncurtail plan` does: from an experiment to policies side by side, without any GPU."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncurtail import config, wiring
from uncurtail.adapters import clock
from uncurtail.config import Config, ConfigError
from uncurtail.core.signals import Trace
from uncurtail.plan.compare import Comparison, compare
from uncurtail.report.planned import Game, Limit, draw_plan, file_name
from uncurtail.report.style import mass, number, percent
from uncurtail.runfolder import write_atomic
from uncurtail.sourcing import price_traces

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan. `sweep` is KEY=A,B,C; `policies` are names, divided by commas."""

    experiment: Path
    overrides: list[str]
    sweep: str | None = None
    policies: str | None = None
    plans: Path = Path("plans")


@dataclass(frozen=True, slots=True)
class _Played:
    label: str | None  # the value of the sweep's key
    settings: Config
    traces: Mapping[str, Trace]
    result: Comparison


def plan(request: Request, console: "Console", *, as_json: bool) -> str | None:
    """Compare policies; returns the JSON, or None after showing a table and writing figures.

    Raises:
        UserError: The experiment, the sweep or a policy's name must be mended first.
    """
    names = None if request.policies is None else [n for n in request.policies.split(",") if n]
    if names == []:
        raise ConfigError("--policies names none: write --policies threshold,lookahead")
    played: list[_Played] = []
    for label, override in _values(request.sweep):
        settings = config.load(request.experiment, [*request.overrides, *override])
        start = wiring.start_time(settings, clock.wall())
        traces = wiring.traces(settings, start)
        prices, microgrids = price_traces(settings), wiring.microgrids(settings, start)
        result = compare(settings, traces, start, names, prices, microgrids)
        played.append(_Played(label, settings, traces, result))
    body = _body(request, played)
    if as_json:
        return json.dumps(body, allow_nan=False)
    for one in played:
        console.print(_table(one))
        if one.result.own:
            console.print(_own_table(one.result))
        for note in one.result.notes:
            console.print(f"[yellow]{note}[/yellow]", highlight=False)
    folder = _write(request, played, body)
    console.print(f"Figures and plan.json: {folder}", highlight=False, soft_wrap=True)
    console.print(_next_step(request, played[0].settings), highlight=False, soft_wrap=True)
    return None


def _values(sweep: str | None) -> list[tuple[str | None, list[str]]]:
    if sweep is None:
        return [(None, [])]
    key, equals, values = sweep.partition("=")
    labels = [value for value in values.split(",") if value]
    if not equals or not key or not labels:
        raise ConfigError(
            f"--sweep {sweep}: write KEY=A,B,C, as policy.enter_below_g_per_kwh=80,100"
        )
    return [(label, [f"{key}={label}"]) for label in labels]


def _body(request: Request, played: list[_Played]) -> dict[str, Any]:
    if request.sweep is None:
        return played[0].result.to_json()
    key = request.sweep.partition("=")[0]
    return {"sweep": key, "values": {str(one.label): one.result.to_json() for one in played}}


def _table(one: _Played) -> "Table":
    from rich.table import Table

    result = one.result
    swept = "" if one.label is None else f"{one.label}: "
    table = Table(
        title=f"{swept}{number(result.work_h, 'h')} of one site's training",
        title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0),
        header_style="dim",
    )  # fmt: skip
    table.add_column("policy", no_wrap=True)  # and all of it within 80 columns
    heads = ("makespan", "CO₂", "to best", "g/train h", "in window", "starts", "energy")
    for head in heads:
        table.add_column(head, justify="right")
    for row in result.rows:
        numbers = row.to_json()
        kg, hours = numbers["emissions_kg"], numbers["train_site_h"]
        gap = numbers["gap_to_oracle"]
        table.add_row(
            row.name,
            number(numbers["makespan_h"], "h") + ("" if row.outcome.completed else " unfinished"),
            mass(kg),
            "unknown" if gap is None else percent(gap),
            f"{kg * 1000 / hours:.1f}" if kg is not None and hours else "-",
            percent(numbers["in_window_share"]),
            str(numbers["provisions"]),
            number(numbers["energy_kwh"], "kWh"),
        )
    if result.best is not None:
        best = result.best
        table.add_row(
            "the best possible",
            number(best.makespan_h, "h"),
            mass(best.emissions_kg),
            style="green",
        )
    for site, kg in result.baselines_kg.items():
        table.add_row(f"always on: {site}", number(result.work_h, "h"), mass(kg), style="dim")
    return table


def _own_table(result: Comparison) -> "Table":
    """Where the power of the sites with microgrids came from."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("policy")
    for head in ("site", "solar", "battery", "grid", "grid into battery"):
        table.add_column(head, justify="right")
    for row in result.rows:
        for site, kwh in row.own_kwh.items():
            table.add_row(row.name, site, *(number(value, "kWh") for value in kwh.values()))
    return table


def _write(request: Request, played: list[_Played], body: dict[str, Any]) -> Path:
    stamp = datetime.fromtimestamp(clock.wall(), tz=UTC).strftime("%Y%m%d-%H%M%S")
    folder = request.plans / f"{played[0].settings.name}-{stamp}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(request.experiment, folder / "experiment.toml")
    for one in played:
        suffix = "" if one.label is None else f"-{one.label}"
        write_atomic(folder / f"resolved{file_name(suffix)}.json", config.dump(one.settings))
    write_atomic(folder / "plan.json", json.dumps(body, indent=1, allow_nan=False) + "\n")
    games = [game for one in played for game in _games(one)]
    limits = {
        (row.best.makespan_h, row.best.emissions_kg)
        for one in played
        for row in one.result.rows
        if row.best is not None
    }
    same_work = len({one.result.work_h for one in played}) == 1
    draw_plan(folder, games, [Limit(kg, h) for h, kg in limits], same_work=same_work)
    return folder


def _games(one: _Played) -> list[Game]:
    return [
        Game(
            row.name if one.label is None else f"{row.name} {one.label}",
            row.outcome.start,
            row.outcome.end,
            row.outcome.completed,
            row.outcome.energy.emissions_g / 1000.0,
            {name: site.phases for name, site in row.outcome.sites.items()},
            one.traces,
            one.settings.policy.enter_below_g_per_kwh,
        )
        for row in one.result.rows
    ]


def _next_step(request: Request, settings: Config) -> str:
    if request.sweep is None:
        sweep = "policy.enter_below_g_per_kwh=80,100,120"
        if settings.plan.policies:  # its rows have policies of their own
            sweep = "plan.round_overhead_share=0,0.02,0.2"
        return f"Next: uncurtail plan {request.experiment} --sweep {sweep}"
    return f"Next: uncurtail run {request.experiment}, with the value that you like best by --set"
