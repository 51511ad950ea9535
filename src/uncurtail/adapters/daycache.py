"""Fetched values by day, in the user's cache: what is there is not asked for again.

One file a day of UTC, written whole or not at all. A day goes in once it is over and settled, so
what a source adds or corrects on the day itself is not missed.
"""

import csv
import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from uncurtail.adapters.sources import Point
from uncurtail.core.events import iso, unix

DAY_S = 86_400.0
SETTLED_S = 6 * 3600.0
HEADER = ["t", "value"]


class DayCache:
    """The days of one signal in one region."""

    def __init__(self, root: Path, identity: Sequence[str], region: str) -> None:
        """`identity` is all that decides the values but region and time, as address and kind."""
        sha = hashlib.sha256("\n".join([*identity, region]).encode()).hexdigest()[:8]
        readable = re.sub(r"[^\w.-]", "_", f"{identity[0]}-{region}")[:60]
        self.folder = root / f"{readable}-{sha}"

    def load(self, day: int) -> list[Point] | None:
        """The values of a day (days since 1970), or None: not there, or not readable."""
        try:
            with self._path(day).open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))
            if rows[0] != HEADER:
                return None
            return [Point(unix(t), float(value)) for t, value in rows[1:]]
        except (OSError, ValueError, IndexError):
            return None  # fetched again, and written anew

    def save(self, day: int, points: Iterable[Point]) -> None:
        """Keep a day.

        Raises:
            OSError: It cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(day)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows((iso(point.t), repr(point.value)) for point in points)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _path(self, day: int) -> Path:
        return self.folder / f"{iso(day * DAY_S)[:10]}.csv"


def settled(day: int, points: Sequence[Point], now: float) -> bool:
    """Whether a day's values are all that there will be."""
    return bool(points) and (day + 1) * DAY_S + SETTLED_S <= now


def days_between(start: float, end: float) -> list[int]:
    """The days of UTC (since 1970) that [start, end) touches."""
    return list(range(math.floor(start / DAY_S), math.ceil(end / DAY_S)))
