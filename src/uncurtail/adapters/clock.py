"""The only place that knows the time: simulated, wall and monotonic."""

import time


class ScaledClock:
    """Simulated time that began at `start` when this was made and runs `speed` times faster."""

    def __init__(self, start: float, speed: float) -> None:
        self._start = start
        self._speed = speed
        self._origin = time.monotonic()
        self._wall = 0.0

    def now(self) -> float:
        """Simulated now; never falls, whatever the wall clock does."""
        return round(self._start + (time.monotonic() - self._origin) * self._speed, 3)

    def wall(self) -> float:
        """Wall clock now; where that is set back, this stands still until it has caught up."""
        self._wall = max(self._wall, wall())
        return self._wall

    def sleep_until(self, t: float, at_most_wall_s: float) -> None:
        """Wait until simulated `t`, but not longer than this by the wall clock."""
        pause(
            (t - self.now()) / self._speed if t < float("inf") else at_most_wall_s, at_most_wall_s
        )


def wall() -> float:
    """Wall clock now, unix seconds."""
    return round(time.time(), 3)


def monotonic() -> float:
    """Seconds that never jump: for durations and deadlines."""
    return time.monotonic()


def pause(wanted_s: float, at_most_s: float | None = None) -> None:
    """Sleep by the wall clock; nothing for a negative duration."""
    bounded = wanted_s if at_most_s is None else min(wanted_s, at_most_s)
    if bounded > 0:
        time.sleep(bounded)
