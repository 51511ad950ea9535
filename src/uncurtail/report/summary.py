"""The numbers of a run: `summary.json`, with the keys of `uncurtail plan --json` and a few more.

Shares are 0-1. What is not known is None, never 0.
"""

import json
from typing import Any

from uncurtail.core.fleet import Phase
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.report.footprint import footprint
from uncurtail.report.limit import Limit, limit
from uncurtail.report.rundata import RunData, overlap_s
from uncurtail.runfolder import RunFolder, write_atomic

HOUR_S = 3600.0
# Why a run ends that has done what it was to do; it is cut short by a limit or by its user.
COMPLETE = ("budget", "duration")


def summarise(folder: RunFolder) -> dict[str, Any]:
    """The summary of a run folder, finished or not.

    Raises:
        FileNotFoundError: It is no run folder.
    """
    return summarise_data(RunData(folder))


def summarise_data(run: RunData) -> dict[str, Any]:
    """The summary of a run that was read already."""
    losses = [event.val_loss for event in run.evaluations]
    wall_s = run.events[-1].wall_s - run.events[0].wall_s if run.events else None
    best = limit(run)
    return {
        "policies": {run.policy: _policy(run, best)},
        "oracle": {
            "emissions_kg": None if best is None else best.emissions_kg,
            "makespan_h": None if best is None else best.makespan_h,
        },
        "baselines": run.baselines_kg,
        "tokens": run.commits[-1].tokens if run.commits else None,
        "val_loss_first": losses[0] if losses else None,
        "val_loss_last": losses[-1] if losses else None,
        "rounds": sum(commit.version > 0 for commit in run.commits),
        "round_overhead_share": round_overhead_share(run),
        "wall_s": wall_s,
        "footprint": footprint(run),
    }


def write_summary(folder: RunFolder) -> dict[str, Any]:
    """Write summary.json, whole or not at all; returns what it holds."""
    summary = summarise(folder)
    write_atomic(folder.summary, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def _policy(run: RunData, best: Limit | None) -> dict[str, Any]:
    total = run.ledger.total()
    makespan_h = None
    if run.start is not None and run.committed is not None:
        makespan_h = (run.committed.t - run.start) / HOUR_S
    metered = bool(run.segments)
    own = {"microgrids": run.own_kwh} if metered and run.own_kwh else {}
    return {
        "makespan_h": makespan_h,
        "energy_kwh": total.energy_j / J_PER_KWH if metered else None,
        "emissions_kg": run.emissions_kg(),
        "in_window_share": total.clean_j / total.energy_j if total.energy_j > 0 else None,
        "provisions": sum(run.provisions(site) for site in run.sites),
        "train_site_h": run.train_s / HOUR_S if metered else None,
        "completed": run.ended is not None and run.ended.reason in COMPLETE,
        "gap_to_oracle": None if best is None else best.gap,
        **own,
    }


def round_overhead_share(run: RunData) -> float | None:
    """The share of the time that ready sites spent in their windows without stepping.

    Ready is idle or training, capped or not. None when no site was ever ready in its window.
    """
    idle_s = training_s = 0.0
    for site in run.sites:
        windows = run.windows(site)
        phases = run.phases(site)
        idle_s += overlap_s((p for p in phases if p.label == Phase.IDLE), windows)
        trained = (p for p in phases if p.label in (Phase.TRAINING, Phase.CAPPED))
        training_s += overlap_s(trained, windows)
    ready_s = idle_s + training_s
    return idle_s / ready_s if ready_s > 0 else None
