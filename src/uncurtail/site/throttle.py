"""How a trainer keeps to its site's capped power: by a limit of its GPUs, or by pausing.

The limit is the better way, since a GPU that runs slower needs less energy for each step. Where
there is none, or the driver refuses it, the trainer pauses after each step, until its speed is on
average what the site declares for its capped power.
"""

from collections.abc import Callable
from typing import Protocol

from uncurtail.adapters import clock
from uncurtail.adapters.gpu_limits import GpuError

# A pause looks so often whether it is still wanted.
LOOK_EVERY_S = 0.05


class Limiter(Protocol):
    """Something that holds the site's power down by itself, as `GpuLimits` does."""

    def cap(self) -> None:
        """Hold it down.

        Raises:
            GpuError: It cannot.
        """
        ...

    def restore(self) -> None:
        """Let go.

        Raises:
            GpuError: It cannot.
        """
        ...


class Throttle:
    """Full or capped power of one trainer.

    `trouble` says what the limiter refused, for people to read; from then on the trainer pauses.
    """

    def __init__(
        self,
        capped_speed: float | None = None,
        limiter: Limiter | None = None,
        now: Callable[[], float] = clock.monotonic,
        pause: Callable[[float], None] = clock.pause,
    ) -> None:
        """`capped_speed` None: a site that trains at full power only."""
        self.capped = False
        self.trouble: str | None = None
        self._speed = capped_speed
        self._limiter = limiter
        self._now, self._pause = now, pause
        self._since = now()

    def set(self, *, capped: bool) -> None:
        """Train at this power from now on; saying it again changes nothing."""
        if capped == self.capped or self._speed is None:
            return
        self.capped = capped
        if self._limiter is None:
            return
        try:
            if capped:
                self._limiter.cap()
            else:
                self._limiter.restore()
        except GpuError as error:
            instead = "the trainer pauses between steps instead"
            self.trouble = f"{error}; {instead if capped else 'the end of the session tries again'}"
            self._limiter = None

    def pauses(self) -> bool:
        """Whether the trainer itself has to slow down now."""
        return self.capped and self._limiter is None

    def work(self) -> None:
        """What begins now is work."""
        self._since = self._now()

    def rest(self, ended: Callable[[], bool]) -> None:
        """Pause for the work since the last pause, unless the limiter does it, or until `ended`."""
        if self.pauses():
            assert self._speed is not None
            now = self._now()
            until = now + (now - self._since) * (1.0 / self._speed - 1.0)
            while now < until and self.pauses() and not ended():
                self._pause(min(LOOK_EVERY_S, until - now))
                now = self._now()
        self.work()
