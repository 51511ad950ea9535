"""Policies side by side on the same work, with the best that could be done, and with no policy."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uncurtail.config import Config, ConfigError
from uncurtail.core.forecasts import Noise, tariff
from uncurtail.core.issues import Issues, Issuing
from uncurtail.core.ledger import J_PER_KWH, baselines_kg, own_kwh
from uncurtail.core.microgrid import Microgrid
from uncurtail.core.planner import PlanVariant
from uncurtail.core.policy import Always, AnyPolicy, Lookahead, Threshold
from uncurtail.core.pricing import filled
from uncurtail.core.signals import Trace
from uncurtail.plan.simulate import Outcome, Scenario, simulate

HOUR_S = 3600.0
SLOT_S = 300.0


@dataclass(frozen=True, slots=True)
class Best:
    """The least that the work can emit by a deadline.

    With batteries its solver may leave more open than `oracle.SAID_GAP`: `emissions_kg` is then
    what is proven, which no schedule may reach, and `proven_only` says so.
    """

    emissions_kg: float
    makespan_h: float
    proven_only: bool = False


@dataclass(slots=True)
class Row:
    """One policy's outcome, and how far it is from the best at its own makespan."""

    name: str
    outcome: Outcome
    best: Best | None = None
    own_sites: tuple[str, ...] = ()

    @property
    def own_kwh(self) -> dict[str, dict[str, float]]:
        """Where the power of each site with a microgrid came from."""
        return {site: own_kwh(self.outcome.sites[site].energy) for site in self.own_sites}

    @property
    def gap(self) -> float | None:
        """Emissions over the oracle's, less 1; None without an oracle or where that is zero."""
        if self.best is None or self.best.emissions_kg <= 0.0:
            return None
        return self.outcome.energy.emissions_g / 1000.0 / self.best.emissions_kg - 1.0

    def to_json(self) -> dict[str, Any]:
        """The keys of `plan --json`; shares are 0-1, unknown is None."""
        outcome, energy = self.outcome, self.outcome.energy
        known = energy.energy_j > energy.unpriced_j or energy.energy_j == 0.0
        own = {"microgrids": self.own_kwh} if self.own_sites else {}
        return {
            "makespan_h": (outcome.end - outcome.start) / HOUR_S,
            "energy_kwh": energy.energy_j / J_PER_KWH,
            "emissions_kg": energy.emissions_g / 1000.0 if known else None,
            "in_window_share": energy.clean_j / energy.energy_j if energy.energy_j > 0 else None,
            "provisions": outcome.provisions,
            "train_site_h": outcome.train_site_s / HOUR_S,
            "completed": outcome.completed,
            "gap_to_oracle": self.gap,
            **own,
        }


@dataclass(slots=True)
class Comparison:
    """Everything that `uncurtail plan` shows."""

    work_h: float
    rows: list[Row]
    best: Best | None
    baselines_kg: dict[str, float | None]
    notes: list[str] = field(default_factory=list)

    @property
    def own(self) -> bool:
        """Whether any site has a microgrid."""
        return any(row.own_sites for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The object of `plan --json`."""
        best = self.best
        return {
            "policies": {row.name: row.to_json() for row in self.rows},
            "oracle": {
                "emissions_kg": None if best is None else best.emissions_kg,
                "makespan_h": None if best is None else best.makespan_h,
            },
            "baselines": self.baselines_kg,
        }


def variants(config: Config) -> dict[str, PlanVariant]:
    """What to compare: `plan.policies`, or the experiment's own policy with its usual rivals."""
    if config.plan.policies:
        return dict(config.plan.policies)
    bands: dict[str, Any] = {
        "enter_below_g_per_kwh": config.policy.enter_below_g_per_kwh,
        "leave_above_g_per_kwh": config.policy.leave_above_g_per_kwh,
        "stale_after_s": config.policy.stale_after_s,
    }
    caps = config.policy.cap_below_g_per_kwh is not None
    own = f"{config.policy.kind}-capped" if caps else config.policy.kind
    found: dict[str, PlanVariant] = {own: PlanVariant(policy=config.policy)}
    rivals: tuple[AnyPolicy, ...] = (Always(**bands), Threshold(**bands), Lookahead(**bands))
    for policy in rivals:
        found.setdefault(policy.kind, PlanVariant(policy=policy))
    if config.energy.forecast == "none":
        found["lookahead-noisy"] = PlanVariant(policy=Lookahead(**bands), forecast="noisy")
    return found


def chosen(config: Config, names: Iterable[str] | None) -> dict[str, PlanVariant]:
    """The variants of these names; all of them for None.

    Raises:
        ConfigError: There is none of that name.
    """
    known = variants(config)
    if names is None:
        return known
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--policies {name}: there is {', '.join(known)}")
    return {name: known[name] for name in wanted}


def compare(
    config: Config,
    traces: Mapping[str, Trace],
    start: float,
    names: Iterable[str] | None = None,
    prices: Mapping[str, Trace] | None = None,
    microgrids: Mapping[str, Microgrid] | None = None,
) -> Comparison:
    """Play every policy on the same work, and bound each from below.

    `prices` (EUR/kWh) are what a file says; where it does not, sites' declared prices hold.

    Raises:
        ConfigError: The work is not said and cannot be found out.
    """
    todo = chosen(config, names)
    costs = _prices(config, prices or {}, start)
    work_s = _work_s(config, traces, start, costs, microgrids)
    rows: list[Row] = []
    notes: list[str] = []
    bounds: dict[tuple[float, float, float], Best | None] = {}  # equal games share theirs
    for name, variant in todo.items():
        game = scenario(config, traces, start, variant, work_s, microgrids)
        game.prices = costs
        outcome = simulate(game)
        key = _slots(game, outcome), outcome.train_site_s, game.round_overhead_share
        if outcome.completed and key not in bounds:
            bounds[key] = bound(game, outcome, config.plan.oracle_time_wall_s)
        best = bounds.get(key) if outcome.completed else None
        rows.append(Row(name, outcome, best, tuple(game.microgrids)))
        notes += [f"{name}: {note}" for note in outcome.notes]
    if any(best is not None and best.proven_only for best in bounds.values()):
        notes.append(
            "the best possible: with batteries not solved to the end; it is no less than this, and "
            "policies may be nearer to it than said"
        )
    if microgrids:
        notes.append("always on: counted without batteries and suns, on the grid alone")
    if costs is not None:
        paid = (f"{row.name} {row.outcome.energy.cost_eur:.2f} EUR" for row in rows)
        notes.append(f"electricity: {', '.join(paid)}")
    ended = [row for row in rows if row.outcome.completed]
    longest = max(ended, key=lambda row: row.outcome.end, default=None)
    best = None if longest is None else longest.best
    power_w = {name: site.train_power_w for name, site in config.sites.items()}
    baselines = baselines_kg(traces, start, work_s, power_w)
    return Comparison(work_s / HOUR_S, rows, best, baselines, notes)


def scenario(
    config: Config,
    traces: Mapping[str, Trace],
    start: float,
    variant: PlanVariant,
    train_site_s: float,
    microgrids: Mapping[str, Microgrid] | None = None,
) -> Scenario:
    """A variant's game."""
    energy, share = config.energy, variant.round_overhead_share
    kind = variant.forecast or energy.forecast
    assert kind != "source", "a config with a trace has no source that forecasts"
    issuing = Issuing(
        kind,
        variant.forecast_horizon_s or energy.forecast_horizon_s,
        variant.forecast_every_s or energy.forecast_every_s,
        Noise(seed=energy.seed, clean_below=variant.policy.enter_below_g_per_kwh),
    )
    issues = None if issuing.kind == "none" else Issues(issuing, traces.__getitem__, start)
    return Scenario(
        policy=variant.policy,
        sites={name: site.costs() for name, site in config.sites.items()},
        traces=traces,
        start=start,
        until=_until(config, traces, start),
        train_site_s=train_site_s,
        round_overhead_share=config.plan.round_overhead_share if share is None else share,
        max_sites=config.fleet.max_sites,
        issues=issues,
        prices=_prices(config, {}, start),
        microgrids=microgrids or {},
    )


def _prices(config: Config, known: Mapping[str, Trace], start: float) -> Mapping[str, Trace] | None:
    """What power costs at every site; None where a site has no price at all."""
    found: dict[str, Trace] = {}
    for name, site in config.sites.items():
        declared = site.price_eur_per_kwh
        if name in known:
            found[name] = filled(known[name], declared, start, math.inf)
        elif declared is not None:
            found[name] = tariff(declared, start)
    return found if len(found) == len(config.sites) else None


def _until(config: Config, traces: Mapping[str, Trace], start: float) -> float:
    end = max(trace.end for trace in traces.values())
    if config.plan.horizon_s is not None:
        return min(end, start + config.plan.horizon_s)
    return end


def _work_s(
    config: Config,
    traces: Mapping[str, Trace],
    start: float,
    costs: Mapping[str, Trace] | None,
    microgrids: Mapping[str, Microgrid] | None,
) -> float:
    """The work in seconds of one site's training."""
    if config.plan.train_site_h is not None:
        return config.plan.train_site_h * HOUR_S
    if config.run.duration_s is None:
        raise ConfigError(
            "how much work is it? Give plan.train_site_h (hours of one site's training), or "
            "run.duration_s: then it is what the experiment's own policy gets done in that time"
        )
    usual = PlanVariant(policy=config.policy)
    own = scenario(config, traces, start, usual, float("inf"), microgrids)
    own.until, own.prices = min(own.until, start + config.run.duration_s), costs
    done_s = simulate(own).train_site_s
    if done_s <= 0.0:
        raise ConfigError(
            f"policy {config.policy.kind!r} trains nothing within run.duration_s: raise it or "
            "policy.enter_below_g_per_kwh, or give plan.train_site_h"
        )
    return done_s


def _slots(own: Scenario, outcome: Outcome) -> int:
    """The oracle counts in whole slots: the one in which the work was done is its to use."""
    return math.ceil((outcome.end - own.start) / SLOT_S - 1e-9)


def bound(own: Scenario, outcome: Outcome, time_limit_wall_s: float) -> Best | None:
    """The oracle's word on a game: the same sites, work and cost of starts, by the same end.

    In whole slots, its work rounded down and its time up, so that nothing can do better. None where
    the solver found no schedule in time, or where there is less than a slot of work.
    """
    from uncurtail.plan import oracle  # scipy takes half a second

    work_s = outcome.train_site_s // SLOT_S * SLOT_S
    if work_s <= 0.0:
        return None
    problem = oracle.Problem(
        sites=own.sites,
        traces=own.traces,
        start=own.start,
        deadline_s=_slots(own, outcome) * SLOT_S,
        train_site_s=work_s,
        overhead_share=own.round_overhead_share,
        max_sites=own.max_sites,
        microgrids=own.microgrids,
    )
    found = oracle.solve(problem, time_limit_wall_s)
    if found is None or not (found.plan or own.microgrids):
        return None
    if own.microgrids and found.gap > oracle.SAID_GAP:
        return Best(found.proven_kg, found.makespan_h, proven_only=True)
    return Best(found.emissions_kg, found.makespan_h)
