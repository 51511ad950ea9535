"""A picture of regions' windows: when they open, through the days and the hours, and for how long.

One row a region: the days from left to right and the hours from top to bottom, darker where more
of the hour was curtailed; the mean of each hour beside it; and how long windows last, by their
number and by the time that lies in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uncurtail.core.windows import Statistics, Windows, by_day_and_hour, first_day
from uncurtail.report.figures import LOOK
from uncurtail.report.style import GRID, INK, MUTED, UNKNOWN, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DAY_S = 86_400.0
# From the window's own colour in the other figures to a green that carries.
NEVER, SOME, ALWAYS = "#f4f6f7", "#8fd3ae", "#00694a"
FEW = "#b7c3cc"
# Bins of a window's length in minutes: each twice as long, from one 5-minute value to a day.
BINS_MIN = (0.0, 7.5, 15.5, 30.5, 60.5, 120.5, 240.5, 480.5, 960.5, np.inf)
BIN_NAMES = ("5 min", "15", "30", "1 h", "2 h", "4 h", "8 h", "16 h", "more")


@dataclass(frozen=True, slots=True)
class Region:
    """One row of the picture."""

    name: str
    windows: Windows
    numbers: Statistics
    utc_offset_h: float


def draw(regions: Sequence[Region], title: str, path: Path) -> None:
    """Write the picture as a PNG file.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(LOOK):
        figure = Figure(figsize=(12.5, 0.95 + 2.55 * len(regions)), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, hspace=0.03, wspace=0.03)  # type: ignore[union-attr, call-arg]
        rows = figure.subplots(len(regions), 3, squeeze=False, width_ratios=(7.2, 1.0, 3.1))
        for row, region in zip(rows, regions, strict=True):
            _days(figure, row[0], region)
            _hours(row[1], region)
            _lengths(row[2], region)
        for axes in rows[:-1, 2]:
            axes.set_xticklabels([])
        rows[-1, 2].set_xlabel("a window lasts up to", fontsize=8, color=MUTED)
        _legend(figure)
        figure.suptitle(title, x=0.006, ha="left", fontsize=14, fontweight="bold")
        figure.savefig(path)


def _days(figure: "Figure", axes: "Axes", region: Region) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("curtailed", [NEVER, SOME, ALWAYS])
    colours = scale.with_extremes(bad="white")
    grid = by_day_and_hour(region.windows, region.utc_offset_h)
    begin = first_day(region.windows, region.utc_offset_h) / DAY_S
    axes.imshow(
        grid.T, aspect="auto", cmap=colours, vmin=0.0, vmax=1.0, interpolation="nearest",
        extent=(begin, begin + len(grid), 24.0, 0.0),
    )  # fmt: skip
    _calendar(axes, len(grid))
    _clock(axes)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    zone = f"UTC{region.utc_offset_h:+g}" if region.utc_offset_h else "UTC"
    axes.set_ylabel(f"hour ({zone})", fontsize=8, color=MUTED)
    axes.set_title(region.name, pad=5)
    axes.set_title(_line(region.numbers), loc="right", fontsize=9, fontweight="normal",
                   color=MUTED, pad=5)  # fmt: skip


def _line(numbers: Statistics) -> str:
    """A region in a line."""
    if not numbers.windows:
        return "never curtailed"
    parts = [
        f"curtailed {percent(numbers.curtailed_share)} of the time",
        f"{numbers.windows_per_day:.1f} windows a day",
    ]
    if numbers.days_without is not None:
        parts.append(f"{percent(numbers.days_without)} of days without")
    if numbers.known_share < 0.9995:
        parts.append(f"{percent(1.0 - numbers.known_share)} unknown")
    return "  ·  ".join(parts)


def _calendar(axes: "Axes", days: int) -> None:
    from matplotlib.dates import ConciseDateFormatter, DateFormatter, DayLocator, MonthLocator

    if days <= 75:
        every = -(-days // 12)
        axes.xaxis.set_major_locator(DayLocator(interval=every))  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(DateFormatter("%-d %b"))  # type: ignore[no-untyped-call]
        return
    months = MonthLocator(interval=-(-days // 400))  # type: ignore[no-untyped-call]
    form = ConciseDateFormatter(months, show_offset=False)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(months)
    axes.xaxis.set_major_formatter(form)


def _clock(axes: "Axes") -> None:
    axes.set_ylim(24.0, 0.0)
    axes.set_yticks([0, 6, 12, 18, 24])


def _hours(axes: "Axes", region: Region) -> None:
    """The mean of each hour, at the height of that hour."""
    profile = np.array(region.numbers.hour_profile)
    axes.barh(np.arange(24) + 0.5, profile, height=0.82, color=ALWAYS, linewidth=0)
    _clock(axes)
    axes.set_yticklabels([])
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=8)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0.0, max(0.1, 1.25 * float(profile.max())))
    axes.set_xticks([])
    if profile.max() > 0:
        peak = int(profile.argmax())
        axes.annotate(
            percent(float(profile[peak])), (profile[peak], peak + 0.5), (3, 0),
            textcoords="offset points", va="center", fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_title("by hour", fontsize=9, fontweight="normal", color=MUTED, pad=5)


def _lengths(axes: "Axes", region: Region) -> None:
    """Bins of length: their share of all windows, and of all curtailed time."""
    lengths_min = region.windows.lengths_s / 60.0
    at = np.arange(len(BIN_NAMES))
    axes.set_xticks(at, BIN_NAMES, fontsize=8)
    axes.set_xlim(-0.6, len(at) - 0.4)
    axes.tick_params(length=0, labelsize=8)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.set_yticks([])
    if not lengths_min.size:
        axes.text(0.5, 0.5, "no window", transform=axes.transAxes, ha="center", color=UNKNOWN)
        return
    number = np.histogram(lengths_min, BINS_MIN)[0] / lengths_min.size
    time = np.histogram(lengths_min, BINS_MIN, weights=lengths_min)[0] / lengths_min.sum()
    axes.bar(at - 0.2, number, 0.38, color=FEW, linewidth=0)
    axes.bar(at + 0.2, time, 0.38, color=ALWAYS, linewidth=0)
    most, longest = int(number.argmax()), int(time.argmax())
    for values, top, x, side in (
        (number, most, -0.02, "right"),
        (time, longest, *((0.03, "left") if most == longest else (0.2, "center"))),
    ):
        axes.annotate(
            percent(float(values[top])), (top + x, values[top]), (0, 2),
            textcoords="offset points", ha=side, fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_ylim(0.0, 1.12 * float(max(number.max(), time.max())))
    quantiles = region.numbers.length_quantiles_min or {}
    title = f"median {lasting(quantiles.get('q50'))}, longest {lasting(region.numbers.longest_min)}"
    axes.set_title(title, fontsize=9, fontweight="normal", color=MUTED, pad=5)


def lasting(minutes: float | None) -> str:
    """A window's length, as short as it reads well."""
    if minutes is None:
        return "-"
    if minutes < 120.0:
        return f"{minutes:.0f} min"
    return f"{minutes / 60.0:.1f} h" if minutes < 2880.0 else f"{minutes / 1440.0:.1f} d"


def _legend(figure: "Figure") -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=FEW, label="share of windows"),
        Patch(facecolor=ALWAYS, label="share of curtailed time"),
    ]
    figure.legend(
        handles=handles, loc="upper right", ncols=2, fontsize=9, handlelength=1.0,
        columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
