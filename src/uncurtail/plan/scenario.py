"""What a run in virtual time is asked, and what came out of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from uncurtail.core.fleet import Phase
from uncurtail.core.issues import Issues
from uncurtail.core.ledger import Energy
from uncurtail.core.microgrid import Microgrid
from uncurtail.core.policy import Costs, PolicySection
from uncurtail.core.signals import Trace


@dataclass(slots=True)
class Scenario:
    """What is asked: `train_site_s` seconds of one site at full power, from `start`, by `until`.

    `round_overhead_share` is the share of the time that a site spends idle while two or more train
    together; training alone costs nothing. `max_sites` may be up at once, see `core.capacity`.
    `microgrids` are of the sites that have one.
    """

    policy: PolicySection
    sites: Mapping[str, Costs]
    traces: Mapping[str, Trace]
    start: float
    until: float
    train_site_s: float = math.inf
    round_overhead_share: float = 0.0
    max_sites: int | None = None
    issues: Issues | None = None
    prices: Mapping[str, Trace] | None = None
    microgrids: Mapping[str, Microgrid] = field(default_factory=dict)


@dataclass(slots=True)
class SiteOutcome:
    """What one site did: `phases` are (phase, start, end), in order, without released time.

    `train_s` is its work, in seconds of training at full power.
    """

    phases: list[tuple[Phase, float, float]] = field(default_factory=list)
    provisions: int = 0
    train_s: float = 0.0
    energy: Energy = field(default_factory=Energy)


@dataclass(slots=True)
class Outcome:
    """What the run did. `end` is when its work was done, or when training last ended."""

    start: float
    end: float
    completed: bool
    train_site_s: float
    sites: dict[str, SiteOutcome]
    notes: list[str] = field(default_factory=list)

    @property
    def energy(self) -> Energy:
        """The sum over sites."""
        total = Energy()
        for site in self.sites.values():
            total.add(site.energy)
        return total

    @property
    def provisions(self) -> int:
        """How often a site was started."""
        return sum(site.provisions for site in self.sites.values())
