"""What fails outside, told in the event log: at once, and once a minute while it lasts."""

import math
from collections.abc import Callable, Mapping

from uncurtail.core.events import Trouble
from uncurtail.core.orders import Heart
from uncurtail.orderdesk import Moment

AGAIN_WALL_S = 60.0
# Deadlines are counted by each trainer's own monotonic clock; what else a wrong clock touches (the
# times of steps, certificates) is not worth a word below this.
SKEW_WALL_S = 5.0


class Troubles:
    """Remembers what was told, and when."""

    def __init__(self, emit: Callable[[Trouble], None]) -> None:
        self._emit = emit
        self._told: dict[str, float] = {}

    def note(self, messages: Mapping[str, str | None], now: Moment) -> None:
        """Tell what is wrong now, by its source; None while nothing is."""
        for source, message in messages.items():
            if message is None:
                self._told.pop(source, None)
            elif now.wall_s - self._told.get(source, 0.0) > AGAIN_WALL_S:
                self._told[source] = now.wall_s
                self._emit(Trouble(t=now.t, wall_s=now.wall_s, source=source, message=message))

    def note_once(self, messages: Mapping[str, str | None], now: Moment) -> None:
        """Tell what will stay as it is, once until it is gone."""
        for source, message in messages.items():
            self.note({source: message}, now)
            if message is not None:
                self._told[source] = math.inf


def clocks_off(hearts: Mapping[str, Heart], sessions: Mapping[str, int]) -> str | None:
    """Which sites' clocks are off, by how much, as the sessions that there are say themselves."""
    off = {
        site: heart.skew_s
        for site, heart in hearts.items()
        if abs(heart.skew_s) > SKEW_WALL_S and heart.session == sessions[site]
    }
    if not off:
        return None
    told = ", ".join(f"{site} by {skew_s:+.0f} s" for site, skew_s in sorted(off.items()))
    return f"the clock is off at {told}: set it there (NTP)"
