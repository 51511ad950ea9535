"""How far a run was from the best possible: the oracle over the run's own readings."""

from dataclasses import dataclass

from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.plan.oracle import NOTHING_KG, Problem, SiteCost, solve
from uncurtail.report.rundata import RunData

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
    same work, or whose oracle was not found in time.
    """
    if run.ended is None or run.start is None or run.committed is None or run.train_s <= 0:
        return None
    trained_until = max(
        (s.end for s in run.segments if s.phase == Phase.TRAINING), default=run.start
    )
    makespan_s = max(run.committed.t, trained_until) - run.start
    slot_s = _slot_s(run, makespan_s)
    problem = Problem(
        sites={site: _cost(run, site) for site in run.traces},
        traces=run.traces,
        start=run.start,
        deadline_s=makespan_s + slot_s,
        train_site_s=run.train_s // slot_s * slot_s,
        slot_s=slot_s,
        max_sites=run.config.get("fleet", {}).get("max_sites"),
    )
    bound = solve(problem, TIME_LIMIT_WALL_S) if problem.sites else None
    if bound is None or not bound.plan:
        return None
    return Limit(bound.emissions_kg, bound.makespan_h, _gap(run, bound.emissions_kg))


def _gap(run: RunData, least_kg: float) -> float | None:
    emitted_kg = run.emissions_kg()
    if emitted_kg is None or run.ledger.total().unpriced_j > 0 or least_kg <= NOTHING_KG:
        return None
    return emitted_kg / least_kg - 1.0


def _slot_s(run: RunData, makespan_s: float) -> float:
    fine = max(run.train_s / WORK_SLOTS, makespan_s * len(run.traces) / MAX_CELLS)
    return min(SLOT_S, fine)


def _cost(run: RunData, site: str) -> SiteCost:
    section = SiteSection.model_validate(run.config["sites"][site])
    return SiteCost(
        train_power_w=section.power_w(Phase.TRAINING),
        idle_power_w=section.power_w(Phase.IDLE),
        provision_power_w=section.power_w(Phase.PROVISIONING),
        provision_s=section.provision_s,
    )
