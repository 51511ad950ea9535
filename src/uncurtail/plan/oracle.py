"""The physical limit: the least emissions for the same work, had everything been known before.

Time is cut into slots; in each a site is off, being provisioned, idle, or training, at full power
or capped, and it trains whole slots. The least is a mixed-integer program for HiGHS. Unknown
intensity is never used.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.microgrid import Microgrid
from uncurtail.core.policy import Costs
from uncurtail.core.signals import Trace
from uncurtail.plan.ownprogram import own_shape
from uncurtail.plan.program import WHOLE, Array, Program, Shape, build, slot_means

HOUR_S = 3600.0
# What counts as solved: a tenth of the 1 % that a reader of a gap to the oracle can use.
SOLVED_GAP = 1e-3
# A schedule with batteries that may be further than this from the best is not called that.
SAID_GAP = 0.01
# Above this many sites x slots HiGHS spends its time on presolving integers; the linear program
# alone is solved in seconds, and leaves few slots undecided.
DIRECT_CELLS = 2_000
# Slots around an undecided one that are decided anew with it.
NEAR_SLOTS = 24
# Below this a difference of emissions is rounding (kg).
NOTHING_KG = 1e-9


@dataclass(frozen=True, slots=True)
class Problem:
    """The work, where it may be done, and until when.

    `train_site_s` is training time summed over sites, rounded up to what whole slots yield; a
    capped slot yields its site's speed.
    `overhead_share` is the share of a slot that a site idles, neither training nor saving work,
    while two or more sites train in it: shared rounds wait for each other, a lone site for nobody.
    In arXiv:2602.22760 it is 1 - 504 s / 648 s = 2/9 of a round. `max_sites` counts sites that
    are up or being provisioned. `start` is unix seconds; the deadline counts from it. `microgrids`
    are of the sites that have one, as they are charged at the start.
    """

    sites: Mapping[str, Costs]
    traces: Mapping[str, Trace]
    start: float
    deadline_s: float
    train_site_s: float
    overhead_share: float = 0.0
    max_sites: int | None = None
    slot_s: float = 300.0
    microgrids: Mapping[str, Microgrid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bound:
    """The best schedule found and how far from the best possible it may be.

    Nothing of whole slots emits less than `emissions_kg * (1 - gap)`. `plan` is each site's
    training as (start, end) in unix seconds. Where not even a schedule was found in time, `plan`
    is empty, `gap` infinite and `emissions_kg` what `floor_kg` proves, or, with batteries, the
    linear program.
    """

    emissions_kg: float
    makespan_h: float
    gap: float
    plan: Mapping[str, tuple[tuple[float, float], ...]]

    @property
    def proven_kg(self) -> float:
        """What nothing of whole slots is below."""
        return self.emissions_kg if not self.plan else self.emissions_kg * (1.0 - self.gap)


def solve(problem: Problem, time_limit_s: float = 60.0) -> Bound | None:
    """The offline optimum, or None where the work cannot be done before the deadline.

    Args:
        problem: The work and the sites.
        time_limit_s: By the wall clock, for all solving together; loading the solver comes on top.

    Raises:
        ValueError: The problem makes no sense; the message names what.
    """
    import scipy.optimize  # noqa: F401 - seconds on a cold disk, and no part of the time limit

    _check(problem)
    if problem.train_site_s <= 0:
        return Bound(0.0, 0.0, 0.0, dict.fromkeys(problem.sites, ()))
    shape = _shape(problem)
    if shape.known.size == 0:
        return None
    found = _search(shape, time.monotonic() + time_limit_s)
    return None if found is None else _bound(problem, shape, *found)


def floor_kg(problem: Problem) -> tuple[float, float] | None:
    """A bound below every schedule: the cheapest slots, without starts, idling or overhead.

    With batteries or suns it is nothing at all: they may carry everything.

    Returns:
        (kgCO2, makespan in hours), or None where not even so many slots are known.
    """
    shape = _shape(problem)
    if problem.train_site_s <= 0:
        return 0.0, 0.0
    if problem.microgrids:
        hours = problem.train_site_s / HOUR_S / len(problem.sites)
        return 0.0, hours
    # By the power that a slot's work takes where that is least, as if every slot gave a whole one.
    least_w = np.min(shape.train_w / shape.speeds, axis=0)
    kg = np.sort(shape.known * least_w[:, None] * problem.slot_s / 3.6e9, axis=None)
    needed = shape.slots_needed
    kg = kg[np.isfinite(kg)][: math.ceil(needed)]
    if kg.size < needed:
        return None
    whole = math.floor(needed)
    part = (needed - whole) * float(kg[-1]) if whole < kg.size else 0.0
    return float(kg[:whole].sum()) + part, needed * problem.slot_s / HOUR_S / len(problem.sites)


@dataclass(frozen=True, slots=True)
class _Answer:
    """`variables` None: no schedule was found in time. `bound_kg`: nothing is below it."""

    variables: Array | None
    bound_kg: float


def _check(problem: Problem) -> None:
    if not problem.sites or problem.sites.keys() - problem.traces.keys():
        raise ValueError("an oracle needs at least one site, and a trace for each")
    if not 0.0 <= problem.overhead_share < 1.0:
        raise ValueError(f"overhead_share is a share below 1, got {problem.overhead_share}")
    if not problem.slot_s > 0.0:
        raise ValueError(f"slot_s must be positive, got {problem.slot_s}")


def _shape(problem: Problem) -> Shape:
    slot_s = problem.slot_s
    num_slots = max(0, math.floor(problem.deadline_s / slot_s + 1e-9))
    costs = list(problem.sites.values())
    train_w, speeds = _levels(costs)
    return Shape(
        known=np.array(
            [slot_means(problem.traces[s], problem.start, num_slots, slot_s) for s in problem.sites]
        ),
        slot_s=slot_s,
        train_w=train_w,
        speeds=speeds,
        idle_w=np.array([cost.idle_power_w for cost in costs]),
        provision_w=np.array([cost.provision_power_w for cost in costs]),
        leads=tuple(_lead(cost.provision_s / slot_s) for cost in costs),
        # 3.4e3 s is no more than 3,400 s: what rounding left must not cost a slot.
        slots_needed=problem.train_site_s / slot_s - 1e-9,
        overhead_share=problem.overhead_share,
        max_sites=problem.max_sites,
        own=tuple(
            own_shape(index, problem.microgrids[site], problem.start, num_slots, slot_s)
            for index, site in enumerate(problem.sites)
            if site in problem.microgrids
        ),
    )


def _levels(costs: Sequence[Costs]) -> tuple[Array, Array]:
    """Power and speed of every site at full power, and capped if any site can be."""
    full_w = [cost.train_power_w for cost in costs]
    if all(cost.capped is None for cost in costs):
        return np.array([full_w]), np.ones((1, len(costs)))
    # One that cannot be capped is capped to what it is: that level gives it nothing.
    capped_w, speeds = np.array([cost.capped or (cost.train_power_w, 1.0) for cost in costs]).T
    return np.array([full_w, capped_w]), np.array([np.ones(len(costs)), speeds])


def _lead(slots: float) -> tuple[float, ...]:
    """How much of each slot before a start goes to provisioning, nearest first."""
    whole = math.floor(slots + 1e-9)
    rest = slots - whole
    return (*[1.0] * whole, *([rest] if rest > 1e-9 else []))


def _search(shape: Shape, until: float) -> tuple[Program, _Answer] | None:
    """Solve, and learn where sites train together only where a solution has them do so.

    A program that knows of fewer shared slots allows more: its bound holds, and its schedule is
    valid once it shares no slot that it does not know. A battery couples slots however far apart,
    and the linear program then leaves most of them undecided: above the limit its bound is all.
    """
    small = shape.known.size <= DIRECT_CELLS
    costs_to_share = shape.overhead_share > 0 and len(shape.known) > 1
    shared = np.full(shape.known.shape[1], small and costs_to_share)
    while True:
        program = build(shape, shared)
        answer = _mixed(program, None, until) if small else _linear(program, until)
        if answer is None:
            return None
        if not small and shape.own:
            return program, replace(answer, variables=None)
        missed = _missed(program, answer, costs_to_share)
        if not small and not missed.any() and answer.variables is not None:
            answer = _round(program, answer, until)
            if answer is None:
                return None
            missed = _missed(program, answer, costs_to_share)
        if not missed.any():
            return program, answer
        shared = shared | _dilate(missed, NEAR_SLOTS)


def _missed(program: Program, answer: _Answer, costs_to_share: bool) -> NDArray[np.bool_]:
    if answer.variables is None or not costs_to_share:
        return np.zeros_like(program.shared)
    return program.missed(answer.variables)


def _mixed(program: Program, bounds: tuple[Array, Array] | None, until: float) -> _Answer | None:
    """Solve with whole slots, within these bounds; None when that is infeasible."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    lower, upper = bounds or (np.zeros_like(program.upper), program.upper)
    result = milp(
        program.cost,
        integrality=program.whole.astype(int),
        bounds=Bounds(lower, upper),
        constraints=LinearConstraint(program.matrix, -np.inf, program.limit),
        options={"time_limit": _left_s(until), "mip_rel_gap": SOLVED_GAP},
    )
    if result.status == 2:
        return None
    bound = -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    return _Answer(result.x, bound)


def _round(program: Program, relaxed: _Answer, until: float) -> _Answer | None:
    """Decide anew only what the linear program left undecided, and what is near it.

    Only the work couples slots that lie far apart, so its vertex is whole almost everywhere, and
    its optimum is within about a start of the truth. None when there is no schedule at all.
    """
    assert relaxed.variables is not None
    undecided = _undecided(program, relaxed.variables)
    best = None if undecided.any() else relaxed.variables
    bound_kg = relaxed.bound_kg
    for near in (NEAR_SLOTS, 8 * NEAR_SLOTS, program.num_slots):
        if best is not None and _gap(_kg(program, best), bound_kg) <= 10 * SOLVED_GAP:
            break
        bounds = _hold(program, relaxed.variables, ~_dilate(undecided, near))
        answer = _mixed(program, bounds, until)
        if answer is not None and answer.variables is not None:
            best = _cheaper(program, best, answer.variables)
        if near == program.num_slots:  # nothing was held
            if answer is None:
                return None
            bound_kg = max(bound_kg, answer.bound_kg)
    return _Answer(best, bound_kg)


def _linear(program: Program, until: float) -> _Answer | None:
    """Solve with slots that may be split; None when even that is infeasible."""
    from scipy.optimize import linprog

    result = linprog(
        program.cost,
        A_ub=program.matrix,
        b_ub=program.limit,
        bounds=np.column_stack([np.zeros(program.upper.size), program.upper]),
        method="highs",
        options={"time_limit": _left_s(until)},
    )
    if result.status == 2:
        return None
    if result.status != 0:
        return _Answer(None, -math.inf)
    return _Answer(result.x, float(result.fun))


def _left_s(until: float) -> float:
    return max(0.01, until - time.monotonic())


def _undecided(program: Program, variables: Array) -> NDArray[np.bool_]:
    """The slots in which any site's state is not whole."""
    states = program.states(variables)
    parts = np.abs(states - np.round(states)) > WHOLE
    return np.asarray(parts.any(axis=(0, 1)))


def _dilate(slots: NDArray[np.bool_], near: int) -> NDArray[np.bool_]:
    """Those slots and all within `near` of one of them."""
    marks = np.append(0, np.cumsum(slots))
    index = np.arange(slots.size)
    first, last = np.maximum(index - near, 0), np.minimum(index + near + 1, slots.size)
    wide: NDArray[np.bool_] = marks[last] > marks[first]
    return wide


def _hold(program: Program, variables: Array, held: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Bounds that hold every site's state at its value in these slots."""
    lower, upper = np.zeros_like(program.upper), program.upper.copy()
    whole = [held] * (1 + program.num_levels)
    states = np.concatenate([*whole, np.zeros_like(held)])
    at = np.flatnonzero(np.tile(states, program.num_sites))
    lower[at] = upper[at] = np.round(variables[at])
    return lower, upper


def _cheaper(program: Program, best: Array | None, found: Array) -> Array:
    if best is None or _kg(program, found) < _kg(program, best):
        return found
    return best


def _kg(program: Program, variables: Array) -> float:
    return float(program.cost @ variables)


def _gap(found_kg: float, bound_kg: float) -> float:
    """How far below what was found the best may still lie, relative to it."""
    if found_kg - bound_kg <= NOTHING_KG:
        return 0.0
    return (found_kg - bound_kg) / found_kg


def _bound(problem: Problem, shape: Shape, program: Program, answer: _Answer) -> Bound | None:
    if answer.variables is None:
        floor = floor_kg(problem)
        if floor is None:
            return None
        least_kg = max(floor[0], answer.bound_kg) if problem.microgrids else floor[0]
        return Bound(least_kg, floor[1], math.inf, {})
    training = program.trains(answer.variables) > 0.5
    plan = {
        site: _spans(training[i], problem.start, problem.slot_s)
        for i, site in enumerate(problem.sites)
    }
    end = max((spans[-1][1] for spans in plan.values() if spans), default=problem.start)
    kg = max(0.0, _kg(program, answer.variables))
    makespan_h = (end - problem.start) / HOUR_S
    return Bound(kg, makespan_h, _gap(kg, max(0.0, answer.bound_kg)), plan)


def _spans(training: NDArray[Any], start: float, slot_s: float) -> tuple[tuple[float, float], ...]:
    """Runs of slots as (start, end) in unix seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], training.astype(int), [0]])))
    times = [start + slot_s * float(edge) for edge in edges]
    return tuple(zip(times[::2], times[1::2], strict=True))
