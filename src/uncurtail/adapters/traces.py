"""CSV files as traces: a time column (ISO 8601 with offset), then one column a region in gCO2/kWh.

A file with a hole, a doubled row or a number that cannot be is refused, with the line and what to
do: a trace decides when sites run, and a guess would run them on the wrong power.
"""

import csv
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.events import unix
from uncurtail.core.signals import PLAUSIBLE_G_PER_KWH, Trace

# Longer than this many median steps is a hole in the data, not a late row.
MAX_GAP_STEPS = 3.0

Row = tuple[int, list[str]]
Array = NDArray[np.float64]


class TraceError(ValueError):
    """A CSV trace that cannot be used: one line that names the place and the remedy."""


def load_csv(
    path: str | Path,
    regions: Sequence[str],
    *,
    allow_gaps: bool = False,
    plausible: tuple[float, float] = PLAUSIBLE_G_PER_KWH,
    unit: str = "gCO2/kWh",
) -> dict[str, Trace]:
    """Each region's carbon intensity (gCO2/kWh, or `unit`), held stepwise from row to row.

    The last row holds for one median step. With `allow_gaps`, a gap of more than three median
    steps is unknown (NaN) from one median step after its last row; without it, it is an error.
    Columns of other regions are not looked at.

    Args:
        path: The file, UTF-8, with a header line.
        regions: Names of columns; all are needed.
        allow_gaps: Whether the times may have gaps. A cell without a number is an error anyway.
        plausible: The lowest and highest value that can be true.
        unit: Of the values, for errors.

    Raises:
        TraceError: No such file or region; a time without zone, doubled or falling; a cell that is
            no plausible number; a gap; fewer than two rows.
    """
    file = Path(path)
    header, rows = _read(file)
    columns = {region: _column(file, header, region) for region in regions}
    times = _times(file, rows)
    step_s = float(np.median(np.diff(times)))
    after = np.flatnonzero(np.diff(times) > MAX_GAP_STEPS * step_s)
    if after.size and not allow_gaps:
        raise _gap_error(file, rows, times, step_s, int(after[0]))
    filled = np.insert(times, after + 1, times[after] + step_s)
    end = float(times[-1]) + step_s
    return {
        region: Trace(
            filled,
            np.insert(_values(file, rows, (region, at), (plausible, unit)), after + 1, np.nan),
            end,
        )
        for region, at in columns.items()
    }


def regions_of(path: str | Path) -> list[str]:
    """The names of the file's columns but the first.

    Raises:
        TraceError: As for `load_csv`, or it has no other column.
    """
    header, _ = _read(Path(path))
    if len(header) < 2:
        raise TraceError(f"{path} has no region: a column a region comes after the time")
    return header[1:]


def _read(file: Path) -> tuple[list[str], list[Row]]:
    """The header, and the rows that are not blank with their line numbers."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        raise TraceError(f"no file {file}: paths are relative to the current directory") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{file} cannot be read as UTF-8 CSV: {error}") from error
    if len(rows) < 2:
        raise TraceError(
            f"{file} has {len(rows)} rows: a trace needs at least two below its header"
        )
    for line, cells in rows:
        if len(cells) != len(header):
            problem = f"{len(cells)} cells where the header has {len(header)}"
            raise TraceError(f"{file}:{line}: {problem}: complete the row or delete it")
    return header, rows


def _column(file: Path, header: list[str], region: str) -> int:
    present = header[1:]
    if present.count(region) > 1:
        raise TraceError(
            f"{file} has {present.count(region)} columns {region!r}: rename all but one"
        )
    if region in present:
        return present.index(region) + 1
    near = difflib.get_close_matches(region, present, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise TraceError(
        f"{file} has no region {region!r}, it has {', '.join(present) or 'none'}{hint}"
    )


def _times(file: Path, rows: list[Row]) -> Array:
    """Unix seconds, strictly rising."""
    times = np.empty(len(rows))
    previous = -math.inf
    for index, (line, cells) in enumerate(rows):
        try:
            times[index] = unix(cells[0].strip())
        except (ValueError, OverflowError) as error:
            reason = str(error)
            hint = "" if "time zone" in reason else ": write times like 2026-01-31T12:00:00+00:00"
            raise TraceError(f"{file}:{line}: {reason}{hint}") from None
        if times[index] <= previous:
            what = "is there twice" if times[index] == previous else "is before the row above it"
            raise TraceError(
                f"{file}:{line}: time {cells[0].strip()} {what}: sort rows, keep each time once"
            )
        previous = float(times[index])
    return times


def _values(
    file: Path,
    rows: list[Row],
    column: tuple[str, int],
    wanted: tuple[tuple[float, float], str],
) -> Array:
    """The column's numbers, finite and plausible."""
    (region, at), ((low, high), unit) = column, wanted
    try:
        values = np.array([float(cells[at]) for _, cells in rows])
    except ValueError:
        values = np.array([_number(cells[at]) for _, cells in rows])
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    if not bad.size:
        return values
    line, cells = rows[int(bad[0])]
    if math.isnan(values[bad[0]]):
        remedy = "delete the row and set energy.allow_gaps to count it as unknown"
        raise TraceError(f"{file}:{line}: {region} is {cells[at]!r}, no number: {remedy}")
    problem = f"{region} is {cells[at].strip()}, outside {low:g}..{high:g} {unit}"
    hint = " (1 lb/MWh is 0.4536 g/kWh)" if unit == "gCO2/kWh" else ""
    raise TraceError(f"{file}:{line}: {problem}: check the unit{hint}")


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _gap_error(file: Path, rows: list[Row], times: Array, step_s: float, at: int) -> TraceError:
    gap_s = float(times[at + 1] - times[at])
    steps = f"{gap_s:g} s without a row where {step_s:g} s are usual"
    remedy = "fill it, or set energy.allow_gaps to count it as unknown"
    return TraceError(
        f"{file}:{rows[at + 1][0]}: {steps}, after {rows[at][1][0].strip()}: {remedy}"
    )
