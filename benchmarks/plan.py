"""How fast policies are played and decided, and what looking ahead is worth on synthetic months.

    python benchmarks/plan.py speed    a site-year, 1,000 sites x 1 year, a live tick of 1,000
    python benchmarks/plan.py months   24 seeded months: threshold, lookahead, and the best possible

Speed: years of 5-minute readings; of 1,000 sites three are drawn for each preset and shared, since
only playing is timed; each still has its own copy in memory. Months: see `months`.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uncurtail import config as configuration
from uncurtail.adapters.blobs import ObjectStore
from uncurtail.adapters.inprocess import SimulatedSites, SiteModel
from uncurtail.adapters.vessim import VessimFeed
from uncurtail.core import grids
from uncurtail.core.commit import Commit
from uncurtail.core.events import unix
from uncurtail.core.forecasts import ErrorModel, Noise
from uncurtail.core.issues import Issues, Issuing
from uncurtail.core.leases import FreeSteps
from uncurtail.core.ledger import Ledger
from uncurtail.core.policy import Costs, Lookahead, PolicySection, Threshold
from uncurtail.core.signals import Trace
from uncurtail.loop import Loop, Past, Ports
from uncurtail.plan.compare import Best, bound
from uncurtail.plan.simulate import Outcome, Scenario, simulate
from uncurtail.runfolder import Journal, RunFolder

NODE = Costs(train_power_w=2024.0, idle_power_w=468.0, provision_power_w=468.0, provision_s=300.0)
START = unix("2026-01-01T00:00:00+00:00")
DAY = 86400.0
PRESETS = ("duck", "solar", "windy")
LOCAL = {"duck": -8.0, "solar": 9.5, "windy": -6.0, "coal": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "months"))
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--oracle-s", type=float, default=60.0, help="at most so long a month")
    parser.add_argument("--months", type=int, default=24)
    asked = parser.parse_args()
    if asked.what == "speed":
        site_year()
        many_site_years(asked.sites)
        live_tick(asked.sites)
    else:
        months(asked.months, asked.oracle_s)


# -- speed --


def site_year() -> None:
    games = (
        ("threshold", Threshold(), None),
        ("lookahead, no forecast", Lookahead(), None),
        ("lookahead, perfect", Lookahead(), Issuing("perfect", 6 * 3600.0)),
        ("lookahead, noisy", Lookahead(), Issuing("noisy", 6 * 3600.0)),
    )
    print(f"{'one site-year, ms by wall / CPU (50)':38}" + "".join(f"{p:>14}" for p in PRESETS))
    for name, policy, issuing in games:
        row = [play_ms(policy, issuing, preset) for preset in PRESETS]
        print(f"  {name:36}" + "".join(f"{ms:>14}" for ms in row))


def play_ms(policy: PolicySection, issuing: Issuing | None, preset: str) -> str:
    trace = grids.synthetic(preset, seed=1, start=START, duration_s=365 * DAY)
    taken = []
    for _ in range(5):
        issues = None if issuing is None else Issues(issuing, lambda _site: trace, START)
        wall, cpu = time.perf_counter(), time.process_time()
        simulate(game({preset: trace}, policy, issues, 365 * DAY))
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_ms, cpu_ms = (statistics.median(times) * 1e3 for times in zip(*taken, strict=True))
    return f"{wall_ms:.0f} / {cpu_ms:.0f}"


def many_site_years(count: int) -> None:
    drawn = [
        grids.synthetic(preset, seed=seed, start=START, duration_s=365 * DAY)
        for preset in PRESETS
        for seed in range(3)
    ]
    traces = {}
    for number in range(count):
        source = drawn[number % len(drawn)]
        traces[f"s{number}"] = Trace(source.times, source.values.copy(), source.end)
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = simulate(game(traces, Threshold(), None, 365 * DAY, overhead=0.02))
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{count} sites x 1 year, threshold: {wall_s:.1f} s by wall, {cpu_s:.1f} s of CPU "
        f"(goal 60), peak {peak_gb:.2f} GB (goal 2), {outcome.provisions:,} starts"
    )


def game(
    traces: Mapping[str, Trace],
    policy: PolicySection,
    issues: Issues | None,
    length_s: float,
    overhead: float = 0.0,
) -> Scenario:
    sites = dict.fromkeys(traces, NODE)
    return Scenario(
        policy, sites, traces, START, START + length_s, round_overhead_share=overhead, issues=issues
    )


class NoMerger:
    """Merges nothing: a tick is timed, not a merge."""

    def fold(self, update: str, sha256: str, base: str, tokens: int) -> str | None:
        return None

    def finish(self, base: str, outer: str | None) -> tuple[str, str | None]:
        return base, outer

    def reset(self) -> None:
        pass


def live_tick(count: int) -> None:
    """The real loop with its journal and Vessim, over simulated sites: two days, tick by tick."""
    presets = [PRESETS[number % 3] for number in range(count)]
    sites = {f"s{n}": {"preset": p, "seed": n % 9} for n, p in enumerate(presets)}
    settings = configuration.parse(
        {
            "name": "tick",
            "clock": {"start": "2026-01-01T00:00:00+00:00"},
            "policy": {"kind": "lookahead"},
            "sites": sites,
            "train": {"budget_tokens": 10**15},
            "rounds": {"length_s": 3600.0, "max_steps": 10_000},
        },
        "benchmark",
    )
    traces = {
        name: grids.synthetic(site.preset or "", seed=site.seed or 0, start=START, duration_s=DAY)
        for name, site in settings.sites.items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name) / "tick-1")
        folder.create()
        store = ObjectStore(None, folder.path)
        outside = SimulatedSites({site: SiteModel(0.05) for site in settings.sites}, 2048, START)
        journal = Journal(folder)
        ports = Ports(
            VessimFeed(traces, START), outside, outside, outside, NoMerger(), store, journal
        )
        head = Commit(
            "tick", 0, 0, 0, None, START, START, store.put_hashed(b"m"), None, 0, FreeSteps(10**9)
        )
        past = Past(head, 1, START, START, 0, frozenset(), {}, {}, Ledger(100.0))
        loop = Loop(settings, "tick", ports, past, 2048)
        loop.meter.begin()
        loop.start(START, START)
        taken = drive(loop, outside)
        journal.close()
    print(f"live tick, {count} sites, {len(taken)} ticks (goal 50 ms):")
    for name, times in zip(("wall", "CPU"), zip(*taken, strict=True), strict=True):
        p50, p95, p99 = (1e3 * float(np.quantile(times, share)) for share in (0.5, 0.95, 0.99))
        print(f"  by {name}: median {p50:.1f} ms, 95 % {p95:.1f} ms, 99 % {p99:.1f} ms")


def drive(loop: Loop, outside: SimulatedSites) -> list[tuple[float, float]]:
    taken, t = [], START
    while t < START + DAY / 2 and len(taken) < 2000:
        outside.advance(t)
        wall, cpu = time.perf_counter(), time.process_time()
        wake = loop.tick(t, t)
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
        t = max(t + 1.0, min(wake, outside.next_event(), t + 60.0))
    return taken


# -- months --


def months(count: int, oracle_s: float) -> None:
    """Equal work for each policy: nine tenths of what the threshold trains in 30 days.

    Six seeds each of one site in each grid, and of four sites in all of them (with one that is
    never curtailed). The oracle has the same work, its policy's makespan and the same starts.
    """
    error = ErrorModel()
    print(f"error model: {error}")
    rows = []
    for number in range(count):
        row = month(number, oracle_s)
        rows.append(row)
        print(json.dumps(row), flush=True)
    for name in ("lookahead", "lookahead-noisy"):
        summary(rows, name)


def month(number: int, oracle_s: float) -> dict:
    presets = ((*((p,) for p in PRESETS), ("duck", "solar", "windy", "coal")))[number % 4]
    seed = number // 4
    start = START + seed * 60 * DAY
    traces = {
        preset: grids.synthetic(
            preset, seed=100 + seed, start=start, duration_s=60 * DAY, utc_offset_h=LOCAL[preset]
        )
        for preset in presets
    }
    base = Scenario(
        Threshold(), dict.fromkeys(traces, NODE), traces, start, start + 30 * DAY,
        round_overhead_share=0.02,
    )  # fmt: skip
    work_s = 0.9 * simulate(base).train_site_s
    row: dict = {"grids": "+".join(presets), "seed": seed, "work_h": round(work_s / 3600.0, 1)}
    for name, policy, issuing in (
        ("threshold", Threshold(), None),
        ("lookahead", Lookahead(), None),
        ("lookahead-noisy", Lookahead(), Issuing("noisy", 6 * 3600.0, noise=Noise(seed=seed))),
    ):
        issues = None if issuing is None else Issues(issuing, traces.__getitem__, start)
        asked = Scenario(
            policy, base.sites, traces, start, start + 60 * DAY, work_s, 0.02, issues=issues
        )
        outcome = simulate(asked)
        best = bound(asked, outcome, oracle_s) if name != "threshold" and oracle_s else None
        row[name] = numbers(outcome, best)
    return row


def numbers(outcome: Outcome, best: Best | None) -> dict:
    hours = outcome.train_site_s / 3600.0
    body = {
        "g_per_h": round(outcome.energy.emissions_g / hours, 3),
        "starts": outcome.provisions,
        "days": round((outcome.end - outcome.start) / DAY, 2),
        "done": outcome.completed,
        "in_window": round(outcome.energy.clean_j / outcome.energy.energy_j, 4),
    }
    if best is not None:
        body["oracle_g_per_h"] = round(best.emissions_kg * 1000.0 / hours, 3)
        body["proven_only"] = best.proven_only
    return body


def summary(rows: list[dict], name: str) -> None:
    pairs = [(row[name], row["threshold"]) for row in rows]
    starts = [ours["starts"] / theirs["starts"] for ours, theirs in pairs]
    total = sum(ours["starts"] for ours, _ in pairs) / sum(theirs["starts"] for _, theirs in pairs)
    worse = [against(ours["g_per_h"], theirs["g_per_h"]) for ours, theirs in pairs]
    gaps = [
        against(ours["g_per_h"], ours["oracle_g_per_h"])
        for ours, _ in pairs
        if "oracle_g_per_h" in ours
    ]
    longer = [ours["days"] / theirs["days"] - 1.0 for ours, theirs in pairs]
    print(
        f"{name}: starts over the threshold's: median {np.median(starts):.2f}, "
        f"{min(starts):.2f}-{max(starts):.2f}, of all {total:.2f}, "
        f"{sum(share > 0.5 for share in starts)} of {len(starts)} above half (goal 0.5); "
        f"g per train hour over the threshold's: at worst {100 * max(worse):+.1f} % (goal 2); "
        f"over the oracle's: median {100 * np.median(gaps):+.1f} % (goal 10), "
        f"at worst {100 * max(gaps):+.1f} %; "
        f"makespan: median {100 * np.median(longer):+.1f} %"
        if gaps
        else f"{name}: starts {np.median(starts):.2f}, {total:.2f}, {starts}; {max(worse):.3f}"
    )


def against(ours: float, theirs: float) -> float:
    """By how much ours is above theirs; what differs by less than 0.1 g an hour is equal."""
    if abs(ours - theirs) < 0.1:
        return 0.0
    return ours / theirs - 1.0 if theirs > 0.0 else float("inf")


if __name__ == "__main__":
    sys.exit(main())
