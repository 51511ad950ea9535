"""Which Federations are due: at each change, and when a plan wanted to look again.

One Federation is never worked on twice at once. After a failure it rests, ever longer, whatever
changes about it meanwhile: a spec that the server refuses is not sent again at each pod's news.
"""

import threading
from collections.abc import Callable

from uncurtail.operating.kinds import Key

FIRST_REST_S, LONGEST_REST_S = 1.0, 300.0


class Agenda:
    """Marked from any thread."""

    def __init__(self, woken: Callable[[], None], monotonic: Callable[[], float]) -> None:
        self._woken = woken
        self._now = monotonic
        self._lock = threading.Lock()
        self._due: dict[Key, float] = {}
        self._running: dict[Key, bool] = {}  # and whether its spec has changed meanwhile
        self._failures: dict[Key, int] = {}
        self._rests_until: dict[Key, float] = {}

    def mark(self, key: Key, *, fresh: bool = False) -> None:
        """Look at this Federation soon; `fresh` ends its rest: somebody changed its spec."""
        with self._lock:
            if fresh:
                self._rests_until.pop(key, None)
                if key in self._running:
                    self._running[key] = True
            at = max(self._now(), self._rests_until.get(key, 0.0))
            self._due[key] = min(at, self._due.get(key, at))
        self._woken()

    def take(self) -> Key | None:
        """The next one that is due and not being worked on."""
        with self._lock:
            now = self._now()
            free = [(at, key) for key, at in self._due.items() if key not in self._running]
            if not free or min(free)[0] > now:
                return None
            _, key = min(free)
            del self._due[key]
            self._running[key] = False
            return key

    def done(self, key: Key, again_in_s: float | None, *, failed: bool = False) -> None:
        """It was worked on; None never again by itself."""
        with self._lock:
            # What failed was the spec of before: the new one does not rest for it.
            failed = not self._running.pop(key, False) and failed
            self._failures[key] = self._failures.get(key, 0) + 1 if failed else 0
            if failed:
                grown_s = FIRST_REST_S * 2.0 ** min(self._failures[key] - 1, 20)
                rest_s = max(min(grown_s, LONGEST_REST_S), again_in_s or 0.0)
                self._rests_until[key] = self._now() + rest_s
                # What came in while it was worked on waits, too.
                self._due.pop(key, None)
                again_in_s = rest_s
            if again_in_s is not None:
                at = self._now() + again_in_s
                self._due[key] = min(at, self._due.get(key, at))
            else:
                self._failures.pop(key, None)
                self._rests_until.pop(key, None)
        self._woken()

    def wait_s(self, most_s: float) -> float:
        """How long until something is due."""
        with self._lock:
            waiting = [at for key, at in self._due.items() if key not in self._running]
            return max(0.0, min([most_s, *(at - self._now() for at in waiting)]))
