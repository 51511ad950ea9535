"""The figures of a run, for papers and READMEs: PNG (and PDF) files under RUN/figures/."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uncurtail.core.ledger import J_PER_KWH
from uncurtail.report import curves
from uncurtail.report.gantt import draw_windows
from uncurtail.report.rundata import RunData
from uncurtail.report.style import GRID, INK, MUTED, mass, number, percent, site_colours
from uncurtail.runfolder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DAY_S = 86_400.0  # matplotlib counts days since 1970, UTC
MAX_MARKERS = 40  # a curve with more reads better as a plain line
LOOK: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.dpi": 160,
    "savefig.facecolor": "white",
}


def write_figures(folder: RunFolder, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw every figure that the run has data for; returns the files written.

    Raises:
        FileNotFoundError: It is no run folder.
    """
    return draw_figures(RunData(folder), formats)


def draw_figures(run: RunData, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw the figures of a run that was read already."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    draw: dict[str, Callable[[RunData, Figure], bool]] = {
        "windows": draw_windows,
        "loss": draw_loss,
        "power": draw_power,
        "emissions": draw_emissions,
    }
    target = run.folder.path / "figures"
    target.mkdir(exist_ok=True)
    written: list[Path] = []
    with rc_context(LOOK):
        for name, function in draw.items():
            figure = Figure(layout="constrained")
            if not function(run, figure):
                continue
            for suffix in formats:
                path = target / f"{name}.{suffix}"
                figure.savefig(path)
                written.append(path)
    return written


def draw_loss(run: RunData, figure: "Figure") -> bool:
    """Training loss of every site and validation loss, over time and over tokens."""
    sites = list(curves.losses(run))
    validated = run.evaluations
    if not sites and not validated:
        return False
    figure.set_size_inches(10, 3.9)
    by_time, by_tokens = figure.subplots(1, 2, sharey=True)
    colours = site_colours(run.sites)
    dot: dict[str, Any] = {"s": 9, "alpha": 0.45, "linewidths": 0}
    for site, times, tokens, loss in sites:
        by_time.scatter(times / DAY_S, loss, color=colours[site], label=site, **dot)
        by_tokens.scatter(tokens / 1e6, loss, color=colours[site], **dot)
    val = [event.val_loss for event in validated]
    line: dict[str, Any] = {"color": INK, "linewidth": 1.2}
    if len(val) <= MAX_MARKERS:
        line |= {"marker": "D", "markersize": 4.5}
    if val:
        by_time.plot([event.t / DAY_S for event in validated], val, label="validation", **line)
        by_tokens.plot([event.tokens / 1e6 for event in validated], val, **line)
        by_tokens.annotate(
            f"{val[-1]:.2f}", (validated[-1].tokens / 1e6, val[-1]), (0, 7),
            textcoords="offset points", ha="center", fontsize=9, fontweight="bold",
        )  # fmt: skip
    time_axis(by_time)
    by_time.set_title("Loss over simulated time")
    by_time.set_ylabel("loss (nats per token)")
    by_tokens.set_title("Loss over tokens")
    by_tokens.set_xlabel("tokens, all sites (million)")
    legend = by_time.legend(loc="upper right")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return True


def draw_power(run: RunData, figure: "Figure") -> bool:
    """What each site draws over time, stacked."""
    edges, power = curves.power_kw(run)
    if len(edges) < 2:
        return False
    figure.set_size_inches(10, 3.1)
    axes = figure.subplots()
    colours = site_colours(run.sites)
    below = np.zeros(len(edges))
    for site in run.sites:
        top = below + np.append(power[site], power[site][-1])
        axes.fill_between(
            edges / DAY_S, below, top, step="post", color=colours[site], label=site, linewidth=0
        )
        below = top
    axes.set_ylim(0, max(0.001, float(below.max())) * 1.08)
    axes.set_xlim(edges[0] / DAY_S, edges[-1] / DAY_S)
    energy_kwh = run.ledger.total().energy_j / J_PER_KWH
    axes.set_title(f"Power drawn, all phases: {energy_kwh:,.3g} kWh in all")
    axes.set_ylabel("power (kW)")
    axes.legend(loc="upper left", ncols=1, bbox_to_anchor=(1.0, 1.0), reverse=True)
    time_axis(axes)
    return True


def draw_emissions(run: RunData, figure: "Figure") -> bool:
    """Cumulative emissions of the run against every site alone and always on."""
    times, kg = curves.emissions_kg(run)
    if run.ledger.total().energy_j == 0:
        return False
    figure.set_size_inches(10, 4.2)
    axes = figure.subplots()
    colours = site_colours(run.sites)
    scale, unit = (1000.0, "g") if _largest_kg(run, kg) < 1.0 else (1.0, "kg")
    end = float(times[-1])
    labels: list[tuple[float, str, str]] = []
    for site in run.sites:
        t, total = curves.baseline_kg(run, site)
        if len(t) < 2:
            continue
        colour = colours[site]
        final = run.baselines_kg[site]
        axes.plot(t / DAY_S, total * scale, color=colour, linewidth=1.5)
        end = max(end, float(t[-1]))
        if final is None:
            axes.plot(t[-1] / DAY_S, total[-1] * scale, "x", color=colour, markersize=6)
        else:
            axes.plot([t[-1] / DAY_S, end / DAY_S], [final * scale] * 2, ":", color=colour)
        labels.append((total[-1] * scale, _baseline_label(site, final, total, kg), colour))
    axes.plot(times / DAY_S, kg * scale, color=INK, linewidth=2.6)
    axes.fill_between(times / DAY_S, 0, kg * scale, color=INK, alpha=0.08, linewidth=0)
    labels.append((float(kg[-1]) * scale, f"this run: {mass(float(kg[-1]))}", INK))
    unpriced_j = run.ledger.total().unpriced_j
    if unpriced_j > 0:
        kwh = number(unpriced_j / J_PER_KWH, "kWh", 2)
        labels.append((float(kg[-1]) * scale - 1e-9, f"and {kwh} at unknown intensity", MUTED))
    axes.set_xlim(times[0] / DAY_S, end / DAY_S)
    axes.set_ylim(0, max(1e-9, axes.get_ylim()[1] * 1.04))
    _label_right(axes, labels)
    axes.set_title("Emissions so far, against the same training at one site that never waits")
    axes.set_ylabel(f"emissions ({unit}CO₂)")
    time_axis(axes)
    return True


def time_axis(axes: "Axes") -> None:
    """Label an axis of days since 1970 as simulated time."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("simulated time (UTC)")


def _baseline_label(site: str, final: float | None, total: curves.Array, kg: curves.Array) -> str:
    if final is None:
        return f"{site} alone: over {mass(float(total[-1]))}, then unknown"
    text = f"{site} alone: {mass(final)}"
    return f"{text}  (this run: {percent(kg[-1] / final)})" if final > 0 else text


def _largest_kg(run: RunData, kg: curves.Array) -> float:
    return max([float(kg[-1]), *(value for value in run.baselines_kg.values() if value)])


def _label_right(axes: "Axes", labels: list[tuple[float, str, str]]) -> None:
    """Write each label right of its curve's end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    room = (high - low) * 0.062
    rising = sorted(labels, key=lambda label: label[0])
    heights: list[float] = []
    for value, _, _ in rising:
        heights.append(max(value, heights[-1] + room) if heights else value)
    ceiling = high
    for i in reversed(range(len(heights))):  # what was pushed out at the top comes back down
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - room
    for (_, text, colour), height in zip(rising, heights, strict=True):
        bold = "bold" if text.startswith("this run") else "normal"
        axes.annotate(
            text, (1.0, height), (8, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", color=colour, fontweight=bold,
            annotation_clip=False,
        )  # fmt: skip
