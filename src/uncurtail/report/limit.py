"""How far a run was from the best possible: the oracle over the run's own readings."""

from dataclasses import dataclass

from uncurtail.config import ConfigError, parse
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.microgrid import Microgrid
from uncurtail.core.policy import Costs
from uncurtail.plan.oracle import NOTHING_KG, SAID_GAP, Problem, solve
from uncurtail.report.rundata import RunData
from uncurtail.sourcing import microgrids

# The end of a run must not wait for it; the demo's shape takes well below a second.
TIME_LIMIT_WALL_S = 5.0
SLOT_S = 300.0
# A short run is cut finer, so that a slot is a percent of its work; but never into more than this.
WORK_SLOTS = 100
MAX_CELLS = 2_000


@dataclass(frozen=True, slots=True)
class Limit:
    """The oracle's emissions (kgCO2) and makespan (h), and the run's emissions over them less 1.

    `gap` is None where the run drew energy at unknown intensity, or where the oracle emits nothing.
    """

    emissions_kg: float
    makespan_h: float
    gap: float | None


def limit(run: RunData) -> Limit | None:
    """The least that the run's work could have emitted by the time it was done.

    The work is rounded down to whole slots and the makespan up, so rounding never flatters the
    run. None for a run that has not ended or not trained, whose readings do not suffice for the
    same work, or whose oracle was not found in time; or whose sun cannot be computed again. With
    batteries, a schedule that was not proven to be within a percent is not told, but its bound.
    """
    if run.ended is None or run.start is None or run.committed is None or run.train_s <= 0:
        return None
    trained_until = max(
        (s.end for s in run.segments if s.phase in (Phase.TRAINING, Phase.CAPPED)),
        default=run.start,
    )
    makespan_s = max(run.committed.t, trained_until) - run.start
    slot_s = _slot_s(run, makespan_s)
    try:
        own = _microgrids(run, run.start, makespan_s + slot_s)
    except ConfigError:
        return None
    problem = Problem(
        sites={site: _cost(run, site) for site in run.traces},
        traces=run.traces,
        start=run.start,
        deadline_s=makespan_s + slot_s,
        train_site_s=run.train_s // slot_s * slot_s,
        slot_s=slot_s,
        microgrids=own,
        max_sites=run.config.get("fleet", {}).get("max_sites"),
    )
    bound = solve(problem, TIME_LIMIT_WALL_S) if problem.sites else None
    if bound is None or not (bound.plan or own):
        return None
    least_kg = bound.proven_kg if own and bound.gap > SAID_GAP else bound.emissions_kg
    return Limit(least_kg, bound.makespan_h, _gap(run, least_kg))


def _microgrids(run: RunData, start: float, duration_s: float) -> dict[str, Microgrid]:
    if not run.own_kwh:
        return {}
    return microgrids(parse(run.config, "resolved.json"), start, duration_s)


def _gap(run: RunData, least_kg: float) -> float | None:
    emitted_kg = run.emissions_kg()
    if emitted_kg is None or run.ledger.total().unpriced_j > 0 or least_kg <= NOTHING_KG:
        return None
    return emitted_kg / least_kg - 1.0


def _slot_s(run: RunData, makespan_s: float) -> float:
    fine = max(run.train_s / WORK_SLOTS, makespan_s * len(run.traces) / MAX_CELLS)
    return min(SLOT_S, fine)


def _cost(run: RunData, site: str) -> Costs:
    section = SiteSection.model_validate(run.config["sites"][site])
    return section.costs()
