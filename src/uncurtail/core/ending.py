"""Why a run winds down: its tokens are trained, its time is up, its budget is spent, or it is told.

Every function is total and pure: no clock, no I/O.
"""

import math
from typing import NamedTuple

from pydantic import Field

from uncurtail.core.policy import Budget
from uncurtail.core.section import Section


class RunSection(Section):
    """When the run ends, besides its token budget."""

    duration_s: float | None = Field(default=None, gt=0)


class Spent(NamedTuple):
    """What a run has cost by `now`: kgCO2 and EUR, and how much of each a second adds."""

    now: float
    kg: float
    eur: float
    kg_per_s: float = 0.0
    eur_per_s: float = 0.0

    def over(self, policy: Budget) -> str | None:
        """Which limit of a budget is reached: "emissions" or "cost"; None for neither."""
        if policy.max_kg is not None and self.kg >= policy.max_kg:
            return "emissions"
        return "cost" if policy.max_eur is not None and self.eur >= policy.max_eur else None

    def over_at(self, policy: Budget) -> float:
        """When a limit will be reached if everything stays as it is; infinite for never."""
        limits = (
            (policy.max_kg, self.kg, self.kg_per_s),
            (policy.max_eur, self.eur, self.eur_per_s),
        )
        return min(
            (
                self.now + max(0.0, limit - spent) / a_second
                for limit, spent, a_second in limits
                if limit is not None and a_second > 0.0
            ),
            default=math.inf,
        )


def stop_reason(
    run: RunSection, *, tokens: int, budget_tokens: int, elapsed_s: float, asked: bool
) -> str | None:
    """Why the run should wind down now, or None: budget, duration or user."""
    if tokens >= budget_tokens:
        return "budget"
    if run.duration_s is not None and elapsed_s >= run.duration_s:
        return "duration"
    return "user" if asked else None
