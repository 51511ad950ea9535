"""Stage 2, ahead of time: who trains when, so that the work is done by a deadline at least cost."""

from pydantic import Field

from uncurtail.core.forecasts import ForecastKind
from uncurtail.core.policy import AnyPolicy
from uncurtail.core.section import Section


class PlanVariant(Section):
    """One row of `uncurtail plan`: a policy, and what differs from the experiment for it."""

    policy: AnyPolicy
    forecast: ForecastKind | None = None  # unset: energy.forecast
    forecast_horizon_s: float | None = Field(default=None, gt=0)
    forecast_every_s: float | None = Field(default=None, gt=0)
    round_overhead_share: float | None = Field(default=None, ge=0, lt=1)


class PlanSection(Section):
    """What `uncurtail plan` plays, and against what.

    `train_site_h` is the work in hours of one site's training; unset: as much as the experiment's
    own policy gets done in run.duration_s. `round_overhead_share` is the share of the time that a
    site idles while two or more train together. `max_sites` may be provisioned at once.
    """

    train_site_h: float | None = Field(default=None, gt=0)
    horizon_s: float | None = Field(default=None, gt=0)  # unset: run.duration_s, or the trace's end
    round_overhead_share: float = Field(default=0.02, ge=0, lt=1)
    max_sites: int | None = Field(default=None, ge=1)
    oracle_time_wall_s: float = Field(default=20.0, gt=0)  # how long its solver may search
    policies: dict[str, PlanVariant] = {}
