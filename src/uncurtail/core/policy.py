"""Stage 2: from what is known about the power to which sites should run.

Every function is total and pure: no clock, no I/O; `now` is simulated unix seconds. `decide` is all
that the loop and the simulator ask, each time something changes.
"""

import math
from enum import StrEnum
from typing import NamedTuple

from uncurtail.core.forecasts import Experience, Forecast
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.microgrid import Carried, Own

# The sections are part of what a policy is: their readers find them here.
from uncurtail.core.policies import KINDS as KINDS
from uncurtail.core.policies import Always as Always
from uncurtail.core.policies import AnyPolicy as AnyPolicy
from uncurtail.core.policies import Budget as Budget
from uncurtail.core.policies import Deadline as Deadline
from uncurtail.core.policies import Lookahead as Lookahead
from uncurtail.core.policies import P as P
from uncurtail.core.policies import PolicySection as PolicySection
from uncurtail.core.policies import Threshold as Threshold
from uncurtail.core.policies import counts_money as counts_money
from uncurtail.core.policies import kind_of as kind_of
from uncurtail.core.policies import read_policy as read_policy
from uncurtail.core.policies import uncapped as uncapped
from uncurtail.core.signals import Reading, usable


class Verdict(StrEnum):
    """What a site should do now."""

    TRAIN = "train"  # in a window
    CAPPED = "capped"  # in a window, but at less power: it is clean, and not curtailed
    READY = "ready"  # be provisioned, started for it if need be; do not train
    HOLD = "hold"  # stay provisioned, do not train
    REST = "rest"  # drain and release


class Capped(NamedTuple):
    """Training at less power (W), and the share of the training speed that is left then."""

    power_w: float
    speed: float


class Costs(NamedTuple):
    """What a site draws in W, and how long a start takes in simulated seconds.

    `capped` is None for a site that trains at full power only.
    """

    train_power_w: float
    idle_power_w: float
    provision_power_w: float
    provision_s: float
    capped: Capped | None = None


class Span(NamedTuple):
    """What a plan wants of a site over [start, end), unix seconds."""

    start: float
    end: float
    verdict: Verdict


class View(NamedTuple):
    """What is known of a site at `now`.

    `value` is its usable intensity (g/kWh), None when unknown; `since` is when its window last
    opened or closed; `up_since` when its session was asked for, None when it is released. `spans`
    is its part of a plan, None when there is none. `own` is its battery and sun, None without;
    `carried` is what of its training they carry alone, None: nothing. `dim`: the window is open,
    but only for capped power.
    """

    now: float
    value: float | None
    window_open: bool
    since: float
    up_since: float | None
    forecast: Forecast | None = None
    experience: Experience | None = None
    spans: tuple[Span, ...] | None = None
    own: Own | None = None
    carried: Carried | None = None
    dim: bool = False


class Decision(NamedTuple):
    """What a site should do, until something changes or `revisit` comes."""

    verdict: Verdict
    revisit: float = math.inf


# A predicted end must lie so many of its own standard deviations beyond what a start needs. At 1, a
# year of noisy forecasts gave a tenth fewer starts than at 0, for 1-3 % less training.
MARGIN = 1.0
REST = Decision(Verdict.REST)
TRAIN = Decision(Verdict.TRAIN)


def at_site(policy: P, costs: Costs) -> P:
    """The policy as it holds for a site: without a cap at one that declares no capped power."""
    if policy.cap_below_g_per_kwh is None or costs.capped is not None:
        return policy
    return uncapped(policy)


def costs_under(policy: PolicySection, costs: Costs) -> Costs:
    """What a site costs under a policy: one without a cap knows no capped power."""
    return costs if policy.cap_below_g_per_kwh is not None else costs._replace(capped=None)


def window(policy: PolicySection, reading: Reading | None, *, was_open: bool, now: float) -> bool:
    """Whether the site may train: hysteresis over usable readings; unknown is never curtailed.

    Under a policy that caps, a window opens below `cap_below_g_per_kwh`, and is dim while that of
    the `uncapped` policy is not open: each has its own hysteresis, and the second lies within the
    first. `always` is the baseline of a site that never waits: open whatever the reading says.
    """
    if isinstance(policy, Always):
        return True
    value = usable(reading, now, policy.stale_after_s)
    if value is None:
        return False
    if was_open:
        return value <= policy.closes_above_g_per_kwh
    return value < policy.opens_below_g_per_kwh


def decide(policy: PolicySection, costs: Costs, view: View) -> Decision:
    """What a site should do now, by what is known of it.

    Unknown power never trains, capped or not: with `view.value` None the verdict is HOLD, READY or
    REST, whatever the policy, but for `always`, and for a site that its own power carries alone:
    that is known, whatever the grid's is. Own power that carries full power comes first; then what
    the grid allows at full power; then own power that carries the capped power. A plan says itself
    at which power; all others train at full power in a window that is not dim, and capped in one
    that is, or after it. No policy is asked about a site's health: a start that fails is the
    fleet's to repeat.
    """
    if isinstance(policy, Always):
        return TRAIN
    carried = view.carried
    if carried is not None and not carried.capped:
        return Decision(Verdict.TRAIN, carried.until)
    decision = _by_grid(policy, costs, view)
    if carried is None or decision.verdict is Verdict.TRAIN:
        return decision
    return Decision(Verdict.CAPPED, min(carried.until, decision.revisit))


def _by_grid(policy: PolicySection, costs: Costs, view: View) -> Decision:
    """What the power of the grid allows."""
    planned = isinstance(policy, Deadline) and view.spans is not None
    if isinstance(policy, Lookahead):
        decision = _lookahead(policy, costs, view)
    elif planned:
        decision = _planned(view)
    else:
        decision = _threshold(policy, view)
    match decision.verdict:
        case Verdict.REST:
            return _held(policy, view, decision)
        case Verdict.TRAIN if not planned and _is_dim(policy, view):
            return decision._replace(verdict=Verdict.CAPPED)
        case _:
            return decision


def _is_dim(policy: PolicySection, view: View) -> bool:
    """Whether power is too dirty for full power, within the window or beyond it (`linger_s`)."""
    return view.dim or (policy.cap_below_g_per_kwh is not None and not view.window_open)


def _held(policy: PolicySection, view: View, decision: Decision) -> Decision:
    """Hold what was just started; rest otherwise."""
    if view.up_since is None or view.now - view.up_since >= policy.min_up_s:
        return decision
    return Decision(Verdict.HOLD, min(decision.revisit, view.up_since + policy.min_up_s))


def _threshold(policy: PolicySection, view: View) -> Decision:
    """Train inside a window, and `linger_s` beyond while power is known."""
    if view.value is None:
        return REST
    if view.window_open:
        return TRAIN
    linger_s = policy.linger_s if isinstance(policy, Threshold | Budget) else 0.0
    if view.up_since is not None and view.now - view.since < linger_s:
        return Decision(Verdict.TRAIN, view.since + linger_s)
    return REST


def _planned(view: View) -> Decision:
    """Follow the plan; power that became unknown is waited for, not trained on."""
    assert view.spans is not None
    for span in view.spans:
        if view.now < span.start:
            return Decision(Verdict.REST, span.start)
        if view.now < span.end:
            unknown = view.value is None and span.verdict in (Verdict.TRAIN, Verdict.CAPPED)
            return Decision(Verdict.HOLD if unknown else span.verdict, span.end)
    return REST


def _lookahead(policy: Lookahead, costs: Costs, view: View) -> Decision:
    forecast = view.forecast
    if forecast is not None and view.now >= forecast.until:
        forecast = None  # it has nothing to say any more
    if not view.window_open or view.value is None:
        return REST if forecast is None else _between(policy, costs, view, forecast)
    if forecast is None:
        return _by_experience(policy, costs, view)
    end = forecast.clean_until(view.now, policy.closes_above_g_per_kwh)
    if view.up_since is None:
        least_s = _pays_s(policy, costs)
        # A doubtful forecast has to promise more: the shorter the window, the likelier an error.
        needed_s = least_s + MARGIN * forecast.error_s(least_s)
        return TRAIN if end - view.now >= min(needed_s, forecast.until - view.now) else REST
    # Only a forecast that is sure to a step may end a stay: a wrong guess costs a start.
    if forecast.error_s(end - view.now) > policy.leave_before_s:
        return TRAIN
    leave = end - policy.leave_before_s
    if view.now < leave or end >= forecast.until:
        return Decision(Verdict.TRAIN, leave)  # by then there may be news
    return _between(policy, costs, view, forecast)


def pays_s(start_share: float, costs: Costs, train_power_w: float) -> float:
    """How long training at this power must go on to be worth a start."""
    worth_w = start_share * train_power_w
    if worth_w <= 0.0:  # a share of almost nothing is rounded to nothing
        return costs.provision_s
    return costs.provision_s + costs.provision_power_w * costs.provision_s / worth_w


def _pays_s(policy: Lookahead, costs: Costs) -> float:
    return pays_s(policy.start_share, costs, costs.train_power_w)


def _by_experience(policy: Lookahead, costs: Costs, view: View) -> Decision:
    """Start once windows of this age more likely than not go on for long enough."""
    if view.up_since is not None or view.experience is None:
        return TRAIN
    ripe = view.since + view.experience.ripe_s(_pays_s(policy, costs))
    return TRAIN if view.now >= ripe else Decision(Verdict.REST, ripe)


def _between(policy: Lookahead, costs: Costs, view: View, forecast: Forecast) -> Decision:
    """Between windows: hold over a gap, or start ahead of the next, where that is cheaper."""
    now = view.now
    after = forecast.clean_until(now, policy.closes_above_g_per_kwh)
    after = after if view.window_open else now  # a window about to end is not the next
    opens = forecast.clean_from(after, policy.opens_below_g_per_kwh)
    # A forecast that takes this for a window already was wrong about it: it cannot say the next.
    if not now < opens < forecast.until:
        return Decision(Verdict.REST, forecast.until)
    ends = forecast.clean_until(opens, policy.closes_above_g_per_kwh)
    if ends - opens < min(_pays_s(policy, costs) - costs.provision_s, forecast.until - opens):
        return Decision(Verdict.REST, opens)
    start_g, ahead = _start(policy, costs, forecast, (now, opens, ends))
    if view.up_since is not None:
        # The opening may come late: by as much as the forecast says of itself.
        late_s = forecast.error_s(opens - now)
        idle_g = _grams(costs.idle_power_w, forecast, now, opens)
        if idle_g is not None and idle_g * (1.0 + late_s / (opens - now)) <= start_g:
            return Decision(Verdict.HOLD, opens)
    if not ahead:
        return Decision(Verdict.REST, opens)
    begin = opens - costs.provision_s
    return Decision(Verdict.READY, opens) if now >= begin else Decision(Verdict.REST, begin)


def _start(
    policy: Lookahead, costs: Costs, forecast: Forecast, times: tuple[float, float, float]
) -> tuple[float, bool]:
    """What another start costs in g at least, and whether that is one ahead of the window.

    A start inside the window costs the training that could have been: by the threshold's own word
    a kWh trained is worth the intensity below which a window opens.
    """
    now, opens, ends = times
    power_w, start_s = costs.provision_power_w, costs.provision_s
    clean = forecast.mean(opens, min(ends, opens + max(start_s, 1.0)))
    worth = max(0.0, policy.opens_below_g_per_kwh - (clean or 0.0))
    lost_g = costs.train_power_w * start_s / J_PER_KWH * worth
    inside_g = power_w * start_s / J_PER_KWH * (clean or 0.0) + lost_g
    ahead_g = _grams(power_w, forecast, opens - start_s, opens)
    if not policy.start_ahead or opens - start_s < now or ahead_g is None:
        return inside_g, False
    dirty = forecast.mean(opens - start_s, opens) if start_s else None
    late_s = forecast.error_s(opens - now)
    ahead_g += costs.idle_power_w * late_s / J_PER_KWH * (dirty or 0.0)
    return (ahead_g, True) if ahead_g < inside_g else (inside_g, False)


def _grams(power_w: float, forecast: Forecast, start: float, end: float) -> float | None:
    """Predicted emissions of a constant load over [start, end)."""
    if end <= start:
        return 0.0
    mean = forecast.mean(start, end)
    return None if mean is None else power_w * (end - start) / J_PER_KWH * mean


def stale_at(policy: PolicySection, reading: Reading | None) -> float:
    """When a window that rests on this reading closes by itself; infinite without a reading."""
    return float("inf") if reading is None else reading.as_of + policy.stale_after_s
