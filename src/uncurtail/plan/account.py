"""What one site's phases come to: its work and its energy, with the part that rounds cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from uncurtail.core.fleet import Phase
from uncurtail.core.ledger import Energy
from uncurtail.core.policy import Costs
from uncurtail.plan.integrate import Integral, Spans, intersect, together


@dataclass(slots=True)
class Level:
    """Training at one power: when, which part of it together with others, and what it yields.

    Of the shared part, `lost_share` is idle: it neither works nor draws this power.
    """

    spans: Spans
    power_w: float
    speed: float
    shared: Spans = field(default_factory=lambda: (np.empty(0), np.empty(0)))
    lost_share: float = 0.0

    def worked_s(self) -> float:
        """In seconds at full power."""
        trained_s = float((self.spans[1] - self.spans[0]).sum())
        shared_s = float((self.shared[1] - self.shared[0]).sum())
        return self.speed * (trained_s - self.lost_share * shared_s)


class Account:
    """One site's phases, (phase, start, end) in order."""

    def __init__(self, costs: Costs, phases: Sequence[tuple[Phase, float, float]]) -> None:
        self._costs = costs
        self._phases = phases
        self.levels = [Level(self._spans(Phase.TRAINING), costs.train_power_w, 1.0)]
        if costs.capped is not None:
            self.levels.append(Level(self._spans(Phase.CAPPED), *costs.capped))

    def share(self, shared: Spans, lost_share: float) -> None:
        """Say when sites train together, and what share of that time each idles."""
        for level in self.levels:
            level.shared, level.lost_share = intersect(level.spans, shared), lost_share

    def worked_s(self) -> float:
        """All its training, in seconds at full power."""
        return sum(level.worked_s() for level in self.levels)

    def energy(self, intensity: Integral, prices: Integral | None) -> Energy:
        """What all its phases take, emit and cost."""
        idle_w, total = self._costs.idle_power_w, Energy()
        loads = [(level.spans, level.power_w) for level in self.levels]
        loads += [(lv.shared, lv.lost_share * (idle_w - lv.power_w)) for lv in self.levels]
        loads.append((self._spans(Phase.IDLE), idle_w))
        loads.append((self._spans(Phase.PROVISIONING), self._costs.provision_power_w))
        for spans, power_w in loads:
            total.add(intensity.energy(spans, power_w, prices))
        return total

    def _spans(self, phase: Phase) -> Spans:
        rows = [(start, end) for what, start, end in self._phases if what is phase]
        array = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return array[:, 0], array[:, 1]


def shared_spans(accounts: Sequence[Account], lost_share: float) -> Spans:
    """When at least two sites train, at whichever power; empty where that costs nothing."""
    if lost_share <= 0.0:
        return np.empty(0), np.empty(0)
    # A site that goes from one power to the other ends and begins at once: that is one site.
    return together([level.spans for account in accounts for level in account.levels])
