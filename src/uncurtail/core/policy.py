"""Stage 2: from what is known about the power to which sites should run.

Every function is total and pure: no clock, no I/O; `now` is simulated unix seconds.
"""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from uncurtail.core.section import Section
from uncurtail.core.signals import Reading, usable


class PolicySection(Section):
    """When a site counts as curtailed, and how long it stays up at least."""

    kind: Literal["threshold", "always"] = "threshold"
    enter_below_g_per_kwh: float = Field(default=100.0, gt=0)
    leave_above_g_per_kwh: float = Field(default=120.0, gt=0)
    # A site that was just paid for stays provisioned (idle, never training) this long, so that a
    # short spike does not cost a second start.
    min_up_s: float = Field(default=0.0, ge=0)
    # Three missed 5-minute publications.
    stale_after_s: float = Field(default=900.0, gt=0)

    @model_validator(mode="after")
    def _bands_do_not_cross(self) -> Self:
        if self.leave_above_g_per_kwh < self.enter_below_g_per_kwh:
            raise ValueError("leave_above_g_per_kwh is below enter_below_g_per_kwh: it would flap")
        return self


class RunSection(Section):
    """When the run ends, besides its token budget."""

    duration_s: float | None = Field(default=None, gt=0)


class Verdict(StrEnum):
    """What a site should do now."""

    TRAIN = "train"  # in a window
    HOLD = "hold"  # stay provisioned, do not train
    REST = "rest"  # drain and release


def window(policy: PolicySection, reading: Reading | None, *, was_open: bool, now: float) -> bool:
    """Whether the site is curtailed: hysteresis over usable readings; unknown is never curtailed.

    `always` is the baseline of a site that never waits: open whatever the reading says.
    """
    if policy.kind == "always":
        return True
    value = usable(reading, now, policy.stale_after_s)
    if value is None:
        return False
    if was_open:
        return value <= policy.leave_above_g_per_kwh
    return value < policy.enter_below_g_per_kwh


def decide(
    policy: PolicySection, *, window_open: bool, up_since: float | None, now: float
) -> Verdict:
    """Train inside a window; outside, hold what was just started, rest otherwise."""
    if window_open:
        return Verdict.TRAIN
    if up_since is not None and now - up_since < policy.min_up_s:
        return Verdict.HOLD
    return Verdict.REST


def stale_at(policy: PolicySection, reading: Reading | None) -> float:
    """When a window that rests on this reading closes by itself; infinite without a reading."""
    return float("inf") if reading is None else reading.as_of + policy.stale_after_s


def stop_reason(
    run: RunSection, *, tokens: int, budget_tokens: int, elapsed_s: float, asked: bool
) -> str | None:
    """Why the run should wind down now, or None: budget, duration or user."""
    if tokens >= budget_tokens:
        return "budget"
    if run.duration_s is not None and elapsed_s >= run.duration_s:
        return "duration"
    return "user" if asked else None
