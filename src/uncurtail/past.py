"""What a coordinator begins with: where the one before it stood."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from uncurtail.core.commit import Commit
from uncurtail.core.fleet import SiteState
from uncurtail.core.forecasts import Experience
from uncurtail.core.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier coordinator left, read from the run folder; a fresh run has almost none."""

    head: Commit
    epoch: int
    began: float  # simulated start of the run
    metered_until: float
    last_round: int
    evaluated: frozenset[int]
    states: Mapping[str, SiteState]
    windows: Mapping[str, bool]
    ledger: Ledger
    window_since: Mapping[str, float] = field(default_factory=dict)
    experience: Mapping[str, Experience] = field(default_factory=dict)
    full_windows: Mapping[str, bool] = field(default_factory=dict)
    soc: Mapping[str, float] = field(default_factory=dict)  # of the sites that have a battery
