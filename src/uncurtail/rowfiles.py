"""Files that grow by whole lines: opened behind a torn one, written in one piece, read as rows."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from uncurtail.core.events import iso
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


def digits(value: float | None) -> str:
    """Ten of them; nothing for what is unknown."""
    return "" if value is None else f"{value:.10g}"


def maybe(text: str) -> float | None:
    """The number, None for nothing."""
    return float(text) if text else None
