"""What the loop asks of the outside: small Protocols, each with a real and a simulated side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from uncurtail.core.events import Event
from uncurtail.core.forecasts import Forecast
from uncurtail.core.ledger import Segment
from uncurtail.core.microgrid import Flow, Mode
from uncurtail.core.orders import Announcement, Desired, Heart, StepReport
from uncurtail.core.rounds import Order, Reply
from uncurtail.core.signals import Reading, Trace


class Signals(Protocol):
    """A signal of every site, as it becomes known. Times are simulated."""

    @property
    def trouble(self) -> str | None:
        """What fails at the source now, in one line; None while nothing does."""
        ...

    def readings(self, after: float, until: float) -> list[Reading]:
        """Every change of a site's published value in (after, until], by time."""
        ...

    def next_change(self, now: float) -> float:
        """When the next value is published; infinite when never."""
        ...


class Feed(Signals, Protocol):
    """Energy: intensities in, the power that sites really draw out."""

    def draw(self, start: float, end: float, power_w: Mapping[str, float]) -> dict[str, float]:
        """Hold these loads over [start, end); the average power (W) drawn from the grid by each."""
        ...


class OwnPower(Protocol):
    """What sites have of their own, behind their grid connections: batteries and solar panels."""

    @property
    def soc(self) -> Mapping[str, float]:
        """Each such site's state of charge (0-1), as of the last draw."""
        ...

    def draw(
        self, start: float, end: float, load_w: Mapping[str, float], modes: Mapping[str, Mode]
    ) -> dict[str, Flow]:
        """Hold the loads of exactly these sites over [start, end), the sun standing still."""
        ...


class Prices(Signals, Protocol):
    """What a kWh costs, in EUR/kWh."""

    def expected(self, site: str, now: float) -> Trace | None:
        """The price as far as it is known at `now`, the time to come included."""
        ...


class Forecaster(Protocol):
    """What is believed of the power to come."""

    def forecast(self, site: str, now: float) -> Forecast | None:
        """The newest forecast that was issued by `now`; None when there is none."""
        ...

    def renewed(self, now: float) -> float:
        """When the next one comes after `now`; infinite when never."""
        ...


class Provisioner(Protocol):
    """Starts and ends sessions of sites. Every call is quick, and idempotent."""

    @property
    def trouble(self) -> str | None:
        """What fails where sites are started, in one line; None while nothing does."""
        ...

    def provision(self, site: str, session: int) -> None:
        """See to it that this session is being started."""
        ...

    def release(self, site: str, session: int) -> None:
        """See to it that this session, and all that belongs to it, is being ended."""
        ...

    def alive(self) -> dict[str, frozenset[int]]:
        """The sessions that exist or are being started, from what exists, not from memory."""
        ...


class Post(Protocol):
    """Orders out, replies in."""

    trouble: str | None

    def send(self, order: Order) -> None:
        """Hand over an order; what fails comes back as a reply with an error."""
        ...

    def receive(self) -> list[Reply]:
        """Everything that came since the last call."""
        ...

    def recall(self, order: Order) -> Reply | None:
        """The answer that a site left in the store, should Flower have lost it on the way."""
        ...

    def online(self) -> frozenset[str]:
        """The members that can be sent an order."""
        ...


class State(Protocol):
    """Desired states out, heartbeats and steps in."""

    trouble: str | None

    def exchange(
        self, epoch: int, desired: Mapping[str, Desired], announcement: Announcement | None
    ) -> tuple[dict[str, Heart], list[StepReport]] | None:
        """One round trip; None while the other side is out of reach."""
        ...


class Merger(Protocol):
    """From updates to the next model."""

    def fold(self, update: str, sha256: str, base: str, tokens: int) -> str | None:
        """Fold one update into the mean; why it was refused, or None."""
        ...

    def finish(self, base: str, outer: str | None) -> tuple[str, str | None]:
        """The next model and outer state, as object keys. Starts anew for the next round."""
        ...

    def reset(self) -> None:
        """Forget what was folded."""
        ...


class Commits(Protocol):
    """Where commits go."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Write whole if nothing is there; False when something was."""
        ...

    def retire(self, keep: Iterable[str], before_round: int) -> None:
        """Delete models that are not kept, and updates of earlier rounds."""
        ...


class Record(Protocol):
    """The run folder, as the coordinator appends to it."""

    def events(self, events: Sequence[Event]) -> None:
        """Append events that belong together, in one write: all of them or none."""
        ...

    def reading(self, reading: Reading) -> None:
        """Append a reading."""
        ...

    def price(self, reading: Reading) -> None:
        """Append a price."""
        ...

    def watts(self, reading: Reading) -> None:
        """Append a measured power."""
        ...

    def power(self, segments: Sequence[tuple[Segment, float]]) -> None:
        """Append one cut, every site's segment with what the feed drew (W), in one write."""
        ...

    def steps(self, rows: Iterable[tuple[float, StepReport]]) -> None:
        """Append inner steps, each with its simulated time."""
        ...

    def offset(self) -> int:
        """Bytes of the event log so far."""
        ...

    def sync(self) -> None:
        """Everything above is on disk when this returns."""
        ...
