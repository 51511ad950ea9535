"""Stage 2, what may be chosen: the kinds of policy, each with its own keys and their defaults."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from uncurtail.core.section import Section


class PolicySection(Section):
    """What every policy shares: when a site counts as curtailed, and how long it stays at least."""

    enter_below_g_per_kwh: float = Field(default=100.0, gt=0)
    leave_above_g_per_kwh: float = Field(default=120.0, gt=0)
    # A site that was just paid for stays provisioned (idle, never training) this long, so that a
    # short spike does not cost a second start.
    min_up_s: float = Field(default=0.0, ge=0)
    # Three missed 5-minute publications.
    stale_after_s: float = Field(default=900.0, gt=0)
    # Windows open below this already, and a site that declares `capped_power_w` trains at that
    # power until the intensity is below enter_below. Unset: there is no power in between.
    cap_below_g_per_kwh: float | None = Field(default=None, gt=0)

    @property
    def opens_below_g_per_kwh(self) -> float:
        """Below this a window opens, at whichever power."""
        return self.cap_below_g_per_kwh or self.enter_below_g_per_kwh

    @property
    def closes_above_g_per_kwh(self) -> float:
        """Above this a window closes: both thresholds have a band of the same width."""
        band = self.leave_above_g_per_kwh - self.enter_below_g_per_kwh
        cap = self.cap_below_g_per_kwh
        return self.leave_above_g_per_kwh if cap is None else cap + band

    @model_validator(mode="after")
    def _bands_do_not_cross(self) -> Self:
        if self.leave_above_g_per_kwh < self.enter_below_g_per_kwh:
            raise ValueError("leave_above_g_per_kwh is below enter_below_g_per_kwh: it would flap")
        cap = self.cap_below_g_per_kwh
        if cap is not None and cap <= self.enter_below_g_per_kwh:
            raise ValueError(
                "cap_below_g_per_kwh is not above enter_below_g_per_kwh: nothing lies in between"
            )
        return self


P = TypeVar("P", bound=PolicySection)


def uncapped(policy: P) -> P:
    """The same policy at full power only; its windows are where the other trains at full power."""
    return policy.model_copy(update={"cap_below_g_per_kwh": None})


class Always(PolicySection):
    """The baseline that never waits: trains on any power, known or not."""

    kind: Literal["always"] = "always"

    @model_validator(mode="after")
    def _never_caps(self) -> Self:
        if self.cap_below_g_per_kwh is not None:
            raise ValueError("kind 'always' trains at full power: leave out cap_below_g_per_kwh")
        return self


class Threshold(PolicySection):
    """Run while the intensity is low."""

    kind: Literal["threshold"] = "threshold"
    # Keep training this long after the intensity rose, while it is known. The prototype had 600.
    linger_s: float = Field(default=0.0, ge=0)


class Lookahead(PolicySection):
    """Run in the windows that pay for a start; with a forecast, see their ends coming.

    Without a forecast it learns from the windows so far how they go on.
    """

    kind: Literal["lookahead"] = "lookahead"
    # A start pays when its energy is at most this share of the training that it buys.
    start_share: float = Field(default=0.03, gt=0, le=1)
    # Leave so long before a predicted end that the last step is done: no less than one step.
    leave_before_s: float = Field(default=30.0, ge=0)
    # Whether a start may be made ahead of a window, on power that is not clean yet.
    start_ahead: bool = True


class Budget(PolicySection):
    """As `threshold`, until so much is emitted or spent."""

    kind: Literal["budget"] = "budget"
    linger_s: float = Field(default=0.0, ge=0)
    max_kg: float | None = Field(default=None, gt=0)
    max_eur: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _something_is_limited(self) -> Self:
        if self.max_kg is None and self.max_eur is None:
            raise ValueError("kind 'budget' needs max_kg or max_eur")
        return self


class Deadline(PolicySection):
    """Finish by a time with the least emissions, or at the least cost; see `core.planner`."""

    kind: Literal["deadline"] = "deadline"
    deadline_s: float = Field(gt=0)  # after the start of the run
    objective: Literal["emissions", "cost"] = "emissions"
    # Training site-hours that the token budget takes. Unset: measured while the run goes on.
    site_hours: float | None = Field(default=None, gt=0)
    replan_s: float = Field(default=900.0, gt=0)


KINDS = ("always", "threshold", "lookahead", "deadline", "budget")


def kind_of(value: Any) -> str:
    """The kind that a table or a section names; files from before there were several name none."""
    if isinstance(value, Mapping):
        return str(value.get("kind", "threshold"))
    return str(getattr(value, "kind", "threshold"))


AnyPolicy = Annotated[
    Annotated[Always, Tag("always")]
    | Annotated[Threshold, Tag("threshold")]
    | Annotated[Lookahead, Tag("lookahead")]
    | Annotated[Deadline, Tag("deadline")]
    | Annotated[Budget, Tag("budget")],
    Discriminator(kind_of),
]
_ANY: TypeAdapter[AnyPolicy] = TypeAdapter(AnyPolicy)


def read_policy(body: Mapping[str, Any]) -> AnyPolicy:
    """The policy of a resolved config.

    Raises:
        ValueError: It is none.
    """
    return _ANY.validate_python(body)


def counts_money(policy: PolicySection) -> bool:
    """Whether the policy needs to know what a kWh costs."""
    if isinstance(policy, Deadline):
        return policy.objective == "cost"
    return isinstance(policy, Budget) and policy.max_eur is not None
