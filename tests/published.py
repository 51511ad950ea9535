"""Made-up signals, published as sources do it: every five minutes, whether they changed or not."""

import numpy as np

from uncurtail.core.signals import Trace

HOUR = 3600.0


def published(start: float, *steps: tuple[float, float], end_h: float = 24.0) -> Trace:
    """(hours from `start`, g/kWh) each holding until the next."""
    hours, values = (np.array(column, dtype=float) for column in zip(*steps, strict=True))
    times = start + np.arange(0.0, end_h * HOUR, 300.0)
    at = np.searchsorted(start + hours * HOUR, times, side="right") - 1
    return Trace(times, values[at], start + end_h * HOUR)
