"""A trainer's link to the state plane: a background thread, so that no step ever waits for it.

The thread writes the heartbeat and the steps and reads what is wanted; the trainer reads the last
snapshot. Without the state server the trainer goes on until the deadline it holds.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from uncurtail.adapters import clock
from uncurtail.core.orders import Announcement, Desired

EXCHANGE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Wish:
    """What the coordinator was last seen to want; `beat_at` is monotonic, None: never seen."""

    epoch: int | None = None
    desired: Desired | None = None
    announcement: Announcement | None = None
    announced_at: float = 0.0
    beat: float | None = None
    beat_at: float | None = None
    skew_s: float = 0.0


class State(Protocol):
    """The state plane, as a site sees it."""

    def exchange(
        self, heart: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any] | None, Desired | None, Announcement | None, float] | None:
        """Write, then read (coordinator, desired, announcement, server time); None: no answer."""
        ...


class Link:
    """The background exchange of one site."""

    def __init__(self, state: State, site: str, session: int) -> None:
        self._state = state
        self._site = site
        self._session = session
        self._steps: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._doing = (False, 0, 0)
        self._power: tuple[bool, str | None] = (False, None)
        self._changed = threading.Event()
        self._started = clock.monotonic()
        self.wish = Wish()
        threading.Thread(target=self._work, name="link", daemon=True).start()

    def doing(self, *, stepping: bool, round_number: int, steps: int = 0) -> None:
        """Say what the trainer does; a change of `stepping` goes out at once."""
        before = self._doing[0]
        self._doing = (stepping, round_number, steps)
        if stepping != before:
            self._changed.set()

    def power(self, *, capped: bool, trouble: str | None) -> None:
        """Say whether the trainer keeps to capped power, and what hinders it, at once."""
        before, self._power = self._power, (capped, trouble)
        if self._power != before:
            self._changed.set()

    def report(self, step: dict[str, Any]) -> None:
        """Queue a step's metrics."""
        wall_s = round(clock.wall() + self.wish.skew_s, 3)
        row = {**step, "site": self._site, "session": self._session, "wall_s": wall_s}
        self._steps.append(row)

    def silent_s(self) -> float:
        """Seconds since the coordinator was last seen to move."""
        seen = self.wish.beat_at
        return clock.monotonic() - (self._started if seen is None else seen)

    def _work(self) -> None:
        while True:
            self._exchange()
            self._changed.wait(EXCHANGE_EVERY_S)
            self._changed.clear()

    def _exchange(self) -> None:
        stepping, round_number, steps = self._doing
        capped, trouble = self._power
        heart = {
            "session": self._session,
            "stepping": stepping,
            "round": round_number,
            "steps": steps,
            "skew_s": round(self.wish.skew_s, 3),
            "capped": capped,
            "trouble": trouble,
        }
        batch = [self._steps.popleft() for _ in range(len(self._steps))]
        sent_at = clock.wall()
        answer = self._state.exchange(heart, batch)
        if answer is None:
            self._steps.extendleft(reversed(batch))
            return
        coordinator, desired, announcement, server_s = answer
        wish = replace(
            self.wish,
            desired=desired,
            announcement=announcement,
            announced_at=clock.monotonic(),
            # the server's clock minus ours, at the middle of the round trip
            skew_s=server_s - (sent_at + clock.wall()) / 2,
        )
        if coordinator is not None and coordinator["beat"] != wish.beat:
            wish = replace(
                wish,
                epoch=int(coordinator["epoch"]),
                beat=float(coordinator["beat"]),
                beat_at=clock.monotonic(),
            )
        self.wish = wish
