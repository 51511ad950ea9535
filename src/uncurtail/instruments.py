"""What a meter of the run has at hand: what it reads, where it writes, and the sites' own power."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from uncurtail.config import Config
from uncurtail.core.microgrid import Microgrid, Mode
from uncurtail.core.policy import PolicySection
from uncurtail.core.signals import Kind, Reading, usable
from uncurtail.ports import Feed, OwnPower, Prices, Record, Signals


@dataclass(frozen=True, slots=True)
class OwnSupply:
    """The sites' own power: what they have, who keeps its account, and when the grid is clean."""

    microgrids: Mapping[str, Microgrid]
    power: OwnPower
    policy: PolicySection

    def mode(self, site: str, reading: Reading | None, t: float) -> Mode:
        """What the site's battery is for at `t`: spared while the grid is known to be clean."""
        value = usable(reading, t, self.policy.stale_after_s)
        return self.microgrids[site].mode(value, self.policy.enter_below_g_per_kwh)


class Outside(Protocol):
    """What the loop is given of the outside, as far as it is metered."""

    @property
    def feed(self) -> Feed: ...  # noqa: D102

    @property
    def record(self) -> Record: ...  # noqa: D102

    @property
    def prices(self) -> Prices | None: ...  # noqa: D102

    @property
    def power(self) -> Sequence[Signals]: ...  # noqa: D102

    @property
    def own(self) -> OwnSupply | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a meter reads and writes; how old a price and a measured power may be."""

    feed: Feed
    record: Record
    prices: Prices | None = None
    price_stale_after_s: float = math.inf
    power: Sequence[Signals] = ()
    power_stale_after_s: float = math.inf
    own: OwnSupply | None = None

    @classmethod
    def of(cls, config: Config, outside: Outside) -> "Instruments":
        """Those of a run."""
        price = config.energy.price
        return cls(
            outside.feed,
            outside.record,
            outside.prices,
            math.inf if price is None else price.stale_s,
            outside.power,
            config.fleet.power_stale_after_wall_s * config.clock.speed,
            outside.own,
        )

    def next_change(self, now: float) -> float:
        """When the grid, a price or the sun is next heard to change."""
        changes = [self.feed.next_change(now)]
        if self.prices is not None:
            changes.append(self.prices.next_change(now))
        if self.own is not None:
            suns = (microgrid.solar for microgrid in self.own.microgrids.values())
            changes += [sun.next_change(now) for sun in suns if sun is not None]
        return min(changes)

    def stale_after_s(self, reading: Reading) -> float:
        """How old it may be for what is metered; only batteries ask that of an intensity."""
        match reading.signal.kind:
            case Kind.PRICE:
                return self.price_stale_after_s
            case Kind.POWER:
                return self.power_stale_after_s
            case Kind.MARGINAL | Kind.AVERAGE:
                return math.inf if self.own is None else self.own.policy.stale_after_s
