"""The figure that tells the story: per site its carbon intensity, its windows, and what it did."""

from typing import TYPE_CHECKING

import numpy as np

from uncurtail.core.ledger import J_PER_KWH
from uncurtail.report import curves
from uncurtail.report.rundata import RunData
from uncurtail.report.style import (
    DIM,
    INK,
    MUTED,
    PHASE_COLOURS,
    UNKNOWN,
    WINDOW,
    mass,
    number,
)
from uncurtail.report.words import headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DAY_S = 86_400.0
DASHES = (0, (4, 3))
BAND = "#f1f4f6"


def draw_windows(run: RunData, figure: "Figure") -> bool:
    """Per site its intensity with the windows shaded, and its phases as a band below."""
    from uncurtail.report.figures import time_axis

    if run.start is None or run.end is None or run.end <= run.start:
        return False
    figure.set_size_inches(10, 1.35 + 1.5 * len(run.sites))
    rows = np.atleast_1d(figure.subplots(len(run.sites), 1, sharex=True))
    top = curves.highest(run)
    for axes, site in zip(rows, run.sites, strict=True):
        _intensity(axes, run, site, top)
        _phases(axes, run, site, top)
        axes.tick_params(axis="x", length=0)
    rows[0].set_xlim(run.start / DAY_S, run.end / DAY_S)
    time_axis(rows[-1])
    title = headline(run.emissions_kg(), run.baselines_kg)
    figure.suptitle(title, x=0.006, ha="left", fontsize=13, fontweight="bold")
    _legend(figure, run)
    return True


def _intensity(axes: "Axes", run: RunData, site: str, top: float) -> None:
    times, values = curves.intensity(run, site)
    for window in run.windows(site):
        axes.axvspan(window.start / DAY_S, window.end / DAY_S, color=WINDOW, linewidth=0)
    for window in run.dim_windows(site):
        axes.axvspan(window.start / DAY_S, window.end / DAY_S, color=DIM, linewidth=0)
    threshold = run.enter_below_g_per_kwh
    axes.axhline(threshold, color=MUTED, linewidth=0.9, linestyle=DASHES)
    if len(times):
        axes.step(times / DAY_S, values, where="post", color=INK, linewidth=1.4)
    for i in np.flatnonzero(np.isnan(values[:-1])):
        axes.fill_between(
            times[i : i + 2] / DAY_S, 0, top, facecolor="none", edgecolor=UNKNOWN, hatch="////",
            linewidth=0,
        )  # fmt: skip
    axes.set_ylabel("gCO₂/kWh", fontsize=8, color=MUTED)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(site, pad=4)
    axes.set_title(_line(run, site), loc="right", fontsize=8.5, fontweight="normal", color=MUTED)


def _line(run: RunData, site: str) -> str:
    """What the site did, in a line."""
    total = run.ledger.total(site=site)
    if total.energy_j == 0:
        return "never started"
    trained_h = run.worked_s(site) / 3600.0
    emitted = mass(run.emissions_kg(site))
    energy = number(total.energy_j / J_PER_KWH, "kWh")
    return f"trained {number(trained_h, 'h')}  ·  {energy}  ·  {emitted} CO₂"


def _phases(axes: "Axes", run: RunData, site: str, top: float) -> None:
    """A band below zero: what the site did."""
    low, height = -0.27 * top, 0.2 * top
    axes.axhspan(low, low + height, color=BAND, linewidth=0, zorder=0.5)
    for phase in run.drawing:
        bars = [
            (span.start / DAY_S, (span.end - span.start) / DAY_S)
            for span in run.phases(site)
            if span.label == phase
        ]
        axes.broken_barh(bars, (low, height), facecolors=PHASE_COLOURS[phase], linewidth=0)
    axes.set_ylim(low, top)
    axes.locator_params(axis="y", nbins=4)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick < top])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_bounds(0, top)


def _legend(figure: "Figure", run: RunData) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    opens = "full power" if run.caps else "opens"
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, linewidth=1.5, label="carbon intensity"),
        Line2D(
            [],
            [],
            color=MUTED,
            linewidth=0.9,
            linestyle=DASHES,
            label=f"{opens} below {run.enter_below_g_per_kwh:g}",
        ),
        Patch(facecolor=WINDOW, label="window open"),
        *([Patch(facecolor=DIM, label="dim: capped only")] if run.caps else []),
        Patch(facecolor="none", edgecolor=UNKNOWN, hatch="////", linewidth=0, label="unknown"),
        *(Patch(facecolor=PHASE_COLOURS[phase], label=phase.value) for phase in run.drawing),
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(len(handles), 9), fontsize=8.5,
        handlelength=1.3, columnspacing=1.4,
    )  # fmt: skip
