"""The figures of a plan: what each policy does in each site, and what it costs in time and CO2."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uncurtail.core.fleet import Phase
from uncurtail.core.signals import Trace
from uncurtail.report.figures import DAY_S, LOOK, time_axis
from uncurtail.report.gantt import BAND, DASHES
from uncurtail.report.style import INK, MUTED, PHASE_COLOURS, SITE_COLOURS, WINDOW, mass, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More points than this cannot be told apart in a figure a thousand pixels wide.
MAX_POINTS = 4000
# More sites than this do not fit on a page; the rest is in plan.json.
MAX_SITES = 8


@dataclass(frozen=True, slots=True)
class Game:
    """One policy's game: `phases` are (phase, start, end) by site, unix seconds.

    `traces` are what it was played over, `clean_below` (g/kWh) is the policy's threshold.
    """

    name: str
    start: float
    end: float
    completed: bool
    emissions_kg: float
    phases: Mapping[str, Sequence[tuple[Phase, float, float]]]
    traces: Mapping[str, Trace]
    clean_below: float


@dataclass(frozen=True, slots=True)
class Limit:
    """What nobody can do better: kg of CO2 in so many hours."""

    emissions_kg: float
    makespan_h: float


def file_name(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub("[^A-Za-z0-9.=-]", "_", text)


def draw_plan(
    folder: Path, games: Sequence[Game], limits: Sequence[Limit], *, same_work: bool
) -> list[Path]:
    """Write gantt-POLICY.png for each game and pareto.png; returns the files."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    written: list[Path] = []
    with rc_context(LOOK):
        for game in games:
            figure = Figure(layout="constrained")
            draw_game(figure, game)
            written.append(folder / f"gantt-{file_name(game.name)}.png")
            figure.savefig(written[-1])
        figure = Figure(layout="constrained")
        draw_pareto(figure, games, limits, same_work=same_work)
        written.append(folder / "pareto.png")
        figure.savefig(written[-1])
    return written


def draw_game(figure: "Figure", game: Game) -> None:
    """Per site its intensity, and a band below it that says what the site does."""
    from matplotlib.patches import Patch

    sites = list(game.phases)[:MAX_SITES]
    figure.set_size_inches(10, 1.35 + 1.5 * len(sites))
    rows = np.atleast_1d(figure.subplots(len(sites), 1, sharex=True))
    for axes, site in zip(rows, sites, strict=True):
        _site(axes, game, site)
    rows[0].set_xlim(game.start / DAY_S, max(game.end, game.start + 60.0) / DAY_S)
    time_axis(rows[-1])
    hours = number((game.end - game.start) / 3600.0, "h")
    unfinished = "" if game.completed else ", not finished"
    title = f"{game.name}: {mass(game.emissions_kg)} CO₂ in {hours}{unfinished}"
    figure.suptitle(title, x=0.006, ha="left", fontsize=13, fontweight="bold")
    shown = [Phase.PROVISIONING, Phase.IDLE, Phase.TRAINING]
    if any(phase is Phase.CAPPED for rows in game.phases.values() for phase, _, _ in rows):
        shown.append(Phase.CAPPED)
    handles = [Patch(facecolor=PHASE_COLOURS[phase], label=phase.value) for phase in shown]
    handles.append(Patch(facecolor=WINDOW, label=f"below {game.clean_below:g} g/kWh"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8.5)


def _site(axes: "Axes", game: Game, site: str) -> None:
    trace, clean_below = game.traces[site], game.clean_below
    first, last = trace.times.searchsorted([game.start, game.end], side="right")
    rows = slice(max(int(first) - 1, 0), int(last))
    stride = max(1, (rows.stop - rows.start) // MAX_POINTS)
    times = np.append(trace.times[rows][::stride], game.end) / DAY_S
    values = trace.values[rows][::stride]
    values = np.append(values, values[-1:])
    top = 1.12 * max(clean_below * 1.3, float(np.nanmax(values, initial=0.0)))
    clean = np.flatnonzero(np.diff(np.concatenate([[0], values[:-1] < clean_below, [0]])))
    for first, last in zip(clean[::2], clean[1::2], strict=True):
        axes.axvspan(times[first], times[last], color=WINDOW, linewidth=0)
    axes.step(times, values, where="post", color=INK, linewidth=1.2)
    axes.axhline(clean_below, color=MUTED, linewidth=0.9, linestyle=DASHES)
    low, height = -0.27 * top, 0.2 * top
    axes.axhspan(low, low + height, color=BAND, linewidth=0, zorder=0.5)
    for phase, colour in PHASE_COLOURS.items():
        bars = [
            (start / DAY_S, (end - start) / DAY_S)
            for what, start, end in game.phases[site]
            if what == phase
        ]
        axes.broken_barh(bars, (low, height), facecolors=colour, linewidth=0)
    axes.set_ylim(low, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick < top])
    axes.set_ylabel("gCO₂/kWh", fontsize=8, color=MUTED)
    axes.set_title(site, pad=4)
    axes.tick_params(axis="x", length=0)


def draw_pareto(
    figure: "Figure", games: Sequence[Game], limits: Sequence[Limit], *, same_work: bool
) -> None:
    """Every policy as a point of makespan and emissions, with the limit below them."""
    figure.set_size_inches(8, 4.6)
    axes = figure.subplots()
    near: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for index, game in enumerate(games):
        colour = SITE_COLOURS[index % len(SITE_COLOURS)]
        face = colour if game.completed else "white"
        axes.plot(*_place(game), "o", color=colour, markerfacecolor=face, markersize=8)
    for place, name in _labels(games):
        axes.annotate(name, place, (9, 4), color=INK, **near)
    frontier = _frontier(limits)
    if frontier:
        axes.plot(*zip(*frontier, strict=True), color=MUTED, linestyle=DASHES, marker="_")
        axes.annotate(
            "nobody can do better", frontier[-1], (0, -12), ha="right", color=MUTED, **near
        )
    axes.margins(x=0.18, y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("makespan (h)")
    axes.set_ylabel("emissions (kgCO₂)")
    work = "for the same work" if same_work else "for its own work"
    axes.set_title(f"What each policy costs in time and in CO₂, {work}")


def _place(game: Game) -> tuple[float, float]:
    return (game.end - game.start) / 3600.0, game.emissions_kg


def _labels(games: Sequence[Game]) -> list[tuple[tuple[float, float], str]]:
    """A name for each point, and one for several that lie so near that names would overlap."""
    places = [_place(game) for game in games]
    width, height = (max(max(axis) - min(axis), 1e-9) for axis in zip(*places, strict=True))
    found: list[tuple[tuple[float, float], str]] = []
    for game, (x, y) in zip(games, places, strict=True):
        name = game.name if game.completed else f"{game.name} (not finished)"
        for index, ((other_x, other_y), names) in enumerate(found):
            if abs(x - other_x) < 0.12 * width and abs(y - other_y) < 0.05 * height:
                found[index] = ((max(x, other_x), y), f"{names}, {name}")
                break
        else:
            found.append(((x, y), name))
    return found


def _frontier(limits: Sequence[Limit]) -> list[tuple[float, float]]:
    """The limits that no other beats in both time and emissions, by time."""
    found: list[tuple[float, float]] = []
    for limit in sorted(limits, key=lambda limit: (limit.makespan_h, limit.emissions_kg)):
        if not found or limit.emissions_kg < found[-1][1]:
            found.append((limit.makespan_h, limit.emissions_kg))
    return found
