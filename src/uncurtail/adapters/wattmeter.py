"""What measures a site's power where it is, and says it to the coordinator every so often."""

import logging
from collections.abc import Callable
from threading import Event, Thread
from typing import Protocol

log = logging.getLogger("uncurtail.power")

EVERY_S = 15.0


class WattError(Exception):
    """Power cannot be measured: one line with the reason and, where there is one, the remedy."""


class Wattmeter(Protocol):
    """A way to measure the power of this machine, or of a part of it."""

    source: str

    def watts(self) -> float | None:
        """The mean power in W since the last call; None at the first, where it takes two.

        Raises:
            WattError: It cannot be read now.
        """
        ...


class Reporter:
    """Measures and tells, in a thread; what fails is logged once, and the model counts instead."""

    def __init__(
        self, meter: Wattmeter, say: Callable[[float, str], object], every_s: float = EVERY_S
    ) -> None:
        """`say` is given each measurement (W) and its source."""
        self._meter = meter
        self._say = say
        self._every_s = every_s
        self._stop = Event()
        self._failed: str | None = None

    def start(self) -> None:
        """Begin. The thread must not keep a process alive that wants to end."""
        Thread(target=self._run, name="watts", daemon=True).start()

    def close(self) -> None:
        """Measure no more."""
        self._stop.set()

    def look(self) -> None:
        """Measure and tell once. Never raises what a meter may."""
        try:
            watts = self._meter.watts()
        except WattError as error:
            if str(error) != self._failed:
                log.warning("power is not measured: %s", error)
            self._failed = str(error)
            return
        self._failed = None
        if watts is not None:
            self._say(watts, self._meter.source)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every_s)
