"""What fails outside, as events: each once, and again every so often while it lasts."""

from collections.abc import Mapping

from uncurtail.core.events import Event, Trouble
from uncurtail.orderdesk import Moment

# A steady trouble is written once, and again after this long.
TROUBLE_AGAIN_WALL_S = 60.0


class TroubleBook:
    """Remembers what was written when, by the source of the trouble."""

    def __init__(self) -> None:
        self._written: dict[str, float] = {}

    def news(self, said: Mapping[str, str | None], now: Moment) -> list[Event]:
        """The troubles to write now; None is that nothing fails there any more."""
        found: list[Event] = []
        for source, message in said.items():
            if message is None:
                self._written.pop(source, None)
            elif now.wall_s - self._written.get(source, 0.0) > TROUBLE_AGAIN_WALL_S:
                self._written[source] = now.wall_s
                found.append(Trouble(t=now.t, wall_s=now.wall_s, source=source, message=message))
        return found
