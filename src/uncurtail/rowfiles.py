"""Files that grow by whole lines: opened behind a torn one, written in one piece, read as rows."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from uncurtail.core.events import iso
from uncurtail.core.microgrid import Flow
from uncurtail.core.signals import Reading


def open_append(path: Path, header: tuple[str, ...] | None) -> TextIO:
    """Open a file to be continued, behind its last whole line; a new one begins with a header."""
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(path, whole)
    file = path.open("a", encoding="utf-8", newline="")
    if header is not None and file.tell() == 0:
        write_rows(file, [header])
    return file


def count_columns(path: Path) -> int:
    """Of the file's header: a run that goes on keeps the columns that it began with."""
    return next(whole_lines(path)).count(",") + 1


def write_rows(file: TextIO, rows: Sequence[tuple[object, ...]]) -> None:
    """Append rows in one write."""
    if not rows:
        return
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    file.write(buffer.getvalue())
    file.flush()


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file but for a torn last one; none where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for line in file:
            if line.endswith("\n"):
                yield line.rstrip("\n")


def signal_row(reading: Reading) -> tuple[object, ...]:
    """A price or a measurement, as its file holds it."""
    published = "" if reading.published is None else iso(reading.published)
    row = (iso(reading.t), reading.site, digits(reading.value), published)
    return *row, reading.signal.source


def flow_row(flow: Flow | None) -> tuple[str, ...]:
    """A site's own power, as the power series holds it behind what its grid gave."""
    if flow is None:
        return ("",) * 5
    charges = (flow.solar_charge_w, flow.grid_charge_w)
    return tuple(map(digits, (flow.solar_w, flow.battery_w, *charges, flow.soc)))


def flow_of(row: Mapping[str, str]) -> Flow | None:
    """The same, read again; None for a site without power of its own."""
    if not row.get("soc"):
        return None
    return Flow(
        solar_w=float(row["solar_w"]),
        battery_w=float(row["battery_w"]),
        grid_w=float(row["grid_power_w"]),
        solar_charge_w=float(row["solar_charge_w"]),
        grid_charge_w=float(row["grid_charge_w"]),
        soc=float(row["soc"]),
    )


def digits(value: float | None) -> str:
    """Ten of them; nothing for what is unknown."""
    return "" if value is None else f"{value:.10g}"


def maybe(text: str) -> float | None:
    """The number, None for nothing."""
    return float(text) if text else None
