"""Stage 2, ahead of time: who trains when, so that the work is done by a deadline at least cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uncurtail.core.forecasts import Forecast, ForecastKind
from uncurtail.core.policy import AnyPolicy, Costs, Deadline, Span, Verdict
from uncurtail.core.schedule import Grid, Schedule, cheapest
from uncurtail.core.section import Section

Array = NDArray[np.float64]

# A plan looks at so many slots at most; the further the deadline, the coarser they are.
MOST_SLOTS = 288
SLOT_S = 300.0


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
    site idles while two or more train together.
    """

    train_site_h: float | None = Field(default=None, gt=0)
    horizon_s: float | None = Field(default=None, gt=0)  # unset: until the trace ends
    round_overhead_share: float = Field(default=0.02, ge=0, lt=1)
    oracle_time_wall_s: float = Field(default=20.0, gt=0)  # how long its solver may search
    policies: dict[str, PlanVariant] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a site stands when a plan is made.

    `value` is its usable intensity (g/kWh), `forecast` what is said of it, `price` what a kWh costs
    over time where cost is the objective. `ready_at` is when its session can train: `now` or before
    when it can already, None when it is released.
    """

    costs: Costs
    value: float | None
    window_open: bool
    ready_at: float | None
    forecast: Forecast | None = None
    price: Forecast | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to do: so many seconds of one site at full power, by unix time `deadline`."""

    now: float
    deadline: float
    train_site_s: float
    round_overhead_share: float = 0.0
    max_sites: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What each site should do until when. A site without spans runs by its windows.

    `no_choice`: what the deadline forces that the policy would not do, for people to read.
    `revisit` is when it must be made anew at the latest.
    """

    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    no_choice: str | None = None
    revisit: float = math.inf


def make_plan(policy: Deadline, work: Work, stands: Mapping[str, Stand]) -> Plan:
    """The cheapest way to finish the work in time, by what the forecasts say.

    Where nothing is said of the time to come, sites run in their windows, and all run on any known
    power once the time that is left is only just enough. A deadline that cannot be met is missed
    by as little as possible: everything runs, at full power. Where a site can be capped, the plan
    caps it in the slots in which that is cheaper for the work. Called again whenever something is
    learned.
    """
    if work.train_site_s <= 0.0 or not stands:
        return Plan(dict.fromkeys(stands, ()))
    if work.now >= work.deadline:
        return _all_out(work, stands, "the deadline has passed")
    if all(_said(policy, stand) is None for stand in stands.values()):
        return _by_windows(policy, work, stands)
    names = list(stands)
    grid = _grid(policy, work, [stands[name] for name in names])
    found = cheapest(grid, work.train_site_s)
    if found is None:
        return _all_out(work, stands, "the deadline is too near for the work that is left")
    spans = {name: _spans(grid.edges, found, row) for row, name in enumerate(names)}
    dirty = [
        name
        for row, name in enumerate(names)
        if (value := stands[name].value) is not None
        and found.train[row, 0]
        and value > policy.leave_above_g_per_kwh
        and policy.objective == "emissions"
    ]
    no_choice = None
    if dirty:
        above = f"above {policy.leave_above_g_per_kwh:g} g/kWh"
        no_choice = f"the deadline leaves no choice: {', '.join(dirty)} train {above}"
    return Plan(spans, no_choice, work.now + policy.replan_s)


def left_site_s(
    policy: Deadline, budget_tokens: int, tokens: int, trained_s: float
) -> float | None:
    """Seconds of one site at full power that are left: by what was measured, or was declared.

    `trained_s` took `tokens` so far. None when neither says anything yet.
    """
    left = max(0, budget_tokens - tokens)
    if tokens > 0 and trained_s > 0.0:
        return left * trained_s / tokens
    if policy.site_hours is not None:
        return policy.site_hours * 3600.0 * left / budget_tokens
    return None


def _all_out(work: Work, stands: Mapping[str, Stand], why: str) -> Plan:
    """Everything runs, the cleanest first where not all may."""
    rising = sorted(stands, key=lambda name: _or(stands[name].value, math.inf))
    chosen = rising[: work.max_sites]
    run = (Span(work.now, math.inf, Verdict.TRAIN),)
    spans = {name: run if name in chosen else () for name in stands}
    return Plan(spans, f"{why}: {', '.join(chosen)} train on any known power")


def _by_windows(policy: Deadline, work: Work, stands: Mapping[str, Stand]) -> Plan:
    """Nothing is forecast: wait for windows while there is time to do without them."""
    sites = min(len(stands), work.max_sites or len(stands))
    rate = sites * (1.0 - work.round_overhead_share) if sites > 1 else 1.0
    start_s = max(stand.costs.provision_s for stand in stands.values())
    latest = work.deadline - start_s - work.train_site_s / rate
    if work.now >= latest:
        return _all_out(
            work, stands, "without a forecast, there is no more time to wait for windows"
        )
    return Plan(revisit=min(latest, work.now + policy.replan_s))


def _grid(policy: Deadline, work: Work, stands: Sequence[Stand]) -> Grid:
    """The time until the deadline in slots, and each site's price in each."""
    slot_s = SLOT_S * math.ceil((work.deadline - work.now) / (MOST_SLOTS * SLOT_S))
    first = (math.floor(work.now / slot_s) + 1) * slot_s
    edges = np.append(work.now, np.append(np.arange(first, work.deadline, slot_s), work.deadline))
    prices = np.array([_prices(policy, stand, edges) for stand in stands])
    known = prices[np.isfinite(prices)]
    # What nobody speaks of is as bad as the worst that is known: unknown power is never green.
    worst = float(known.max(initial=policy.leave_above_g_per_kwh))
    capped = _capped(stands)
    return Grid(
        edges=edges,
        prices=np.where(np.isfinite(prices), prices, worst),
        train_w=np.array([stand.costs.train_power_w for stand in stands]),
        idle_w=np.array([stand.costs.idle_power_w for stand in stands]),
        provision_w=np.array([stand.costs.provision_power_w for stand in stands]),
        provision_s=np.array([stand.costs.provision_s for stand in stands]),
        ready_at=np.array([_or(stand.ready_at, math.inf) for stand in stands]),
        round_overhead_share=work.round_overhead_share,
        max_sites=work.max_sites,
        capped_w=None if capped is None else capped[0],
        capped_speed=None if capped is None else capped[1],
    )


def _capped(stands: Sequence[Stand]) -> tuple[Array, Array] | None:
    """Each site's capped power and speed; None where no site can be capped."""
    costs = [stand.costs for stand in stands]
    if all(cost.capped is None for cost in costs):
        return None
    rows = [cost.capped or (cost.train_power_w, 1.0) for cost in costs]
    powers_w, speeds = np.array(rows).T
    return powers_w, speeds


def _prices(policy: Deadline, stand: Stand, edges: Array) -> Array:
    """The cost of a kWh in each slot; the first is what is read now."""
    source = _said(policy, stand)
    count = len(edges) - 1
    prices = np.full(count, np.nan) if source is None else _means(source, edges)
    if policy.objective == "emissions" and stand.value is not None:
        prices[0] = stand.value
    return prices


def _said(policy: Deadline, stand: Stand) -> Forecast | None:
    """What speaks of the time to come: prices for the least cost, else a forecast of the power."""
    return stand.price if policy.objective == "cost" else stand.forecast


def _means(forecast: Forecast, edges: Array) -> Array:
    """The mean of each slot; by its own steps where a slot holds several."""
    times, values = forecast.trace.times, forecast.trace.values
    until = min(forecast.until, forecast.trace.end, float(edges[-1]))  # a tariff never ends
    first = max(int(times.searchsorted(edges[0], side="right")) - 1, 0)
    last = max(int(times.searchsorted(until, side="left")), first + 1)
    starts = np.append(times[first:last], until)
    held = np.append(0.0, np.cumsum(values[first:last] * np.diff(starts)))
    means: Array = np.diff(np.interp(edges, starts, held)) / np.diff(edges)
    means[(edges[1:] > until + 1e-6) | (edges[:-1] < starts[0] - 1e-6)] = np.nan
    return means


def _spans(edges: Array, schedule: Schedule, row: int) -> tuple[Span, ...]:
    spans: list[Span] = []
    for slot in np.flatnonzero(schedule.up[row]):
        trains = Verdict.CAPPED if schedule.capped[row, slot] else Verdict.TRAIN
        verdict = trains if schedule.train[row, slot] else Verdict.READY
        start, end = float(edges[slot]), float(edges[slot + 1])
        if spans and spans[-1].end == start and spans[-1].verdict is verdict:
            start = spans.pop().start
        spans.append(Span(start, end, verdict))
    return tuple(spans)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
