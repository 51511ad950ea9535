"""Stage 2, the arithmetic of plans: the cheapest slots in which to get an amount of work done.

A Lagrangian decomposition. Were a second of training worth some price, each site alone could choose
its best sequence of off, provisioning, idle and training by dynamic programming; the higher the
price, the more is trained. The least price at which enough is trained gives the schedule, and what
is too much is taken off its dearest ends. The dual value bounds every schedule from below.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.ledger import J_PER_KWH

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Prices tried at once, and how often the range between two of them is searched again.
_PRICES, _PASSES = 12, 4
_NEVER = 1 << 30
# Differences below are rounding: what is as good as another is left as it is.
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Grid:
    """Slots (T,) between `edges` (T + 1,) in unix seconds, and S sites.

    `prices` (S, T) are what a kWh costs, in any unit; powers (S,) in W. `ready_at` (S,) is when a
    site's session can train, infinite for one that is released.
    """

    edges: Array
    prices: Array
    train_w: Array
    idle_w: Array
    provision_w: Array
    provision_s: Array
    ready_at: Array
    round_overhead_share: float = 0.0
    max_sites: int | None = None

    @property
    def lengths_s(self) -> Array:
        """The length of each slot."""
        lengths: Array = np.diff(self.edges)
        return lengths

    def cost(self, power_w: Array) -> Array:
        """What a load costs in each slot, (S, T)."""
        cost: Array = power_w[:, None] * self.prices * self.lengths_s / J_PER_KWH
        return cost


@dataclass(frozen=True, slots=True)
class Schedule:
    """Per site and slot, (S, T): whether it is up, provisioning included, and whether it trains."""

    up: Mask
    train: Mask


class _Sites:
    """What the dynamic programme needs, by slot first: (T, S, 1)."""

    def __init__(self, grid: Grid) -> None:
        self.train = grid.cost(grid.train_w).T[:, :, None]
        self.idle = grid.cost(grid.idle_w).T[:, :, None]
        self.lengths_s = grid.lengths_s
        self.slots = len(self.lengths_s)
        provision = np.cumsum(grid.cost(grid.provision_w), axis=1)
        total = np.append(np.zeros((len(grid.prices), 1)), provision, axis=1)
        # The first slot after a start in slot t, and what the start costs.
        begins = grid.edges[:-1, None] + grid.provision_s
        self.after = np.searchsorted(grid.edges, begins - 1e-6)
        self.fits = self.after < self.slots
        rows = np.arange(len(grid.prices))
        ready = np.minimum(self.after, self.slots)
        self.start = (total[rows, ready] - total[rows, np.arange(self.slots)[:, None]])[:, :, None]
        at = np.searchsorted(grid.edges, grid.ready_at - 1e-6)
        self.on_from = np.where(np.isfinite(grid.ready_at), np.minimum(at, self.slots), _NEVER)


def cheapest(grid: Grid, train_site_s: float) -> Schedule | None:
    """The schedule that trains `train_site_s` site-seconds at nearly the least cost.

    None when not even everything that fits before the last edge is enough.
    """
    sites = _Sites(grid)
    top = float(np.max(grid.prices)) * float(np.max(grid.train_w)) / J_PER_KWH
    low, high = 0.0, max(top * 20.0, 1e-9)
    best: Schedule | None = None
    for number in range(_PASSES):
        # First over decades, then within one step.
        worth = (
            np.geomspace(high * 1e-5, high, _PRICES)
            if not number
            else np.linspace(low, high, _PRICES)
        )
        up, train = _solve(sites, worth)
        enough = np.flatnonzero(_work_s(grid, train) >= train_site_s)
        if not enough.size:
            return best
        first = int(enough[0])
        best = Schedule(up[:, :, first].T.copy(), train[:, :, first].T.copy())
        low, high = (float(worth[first - 1]) if first else 0.0), float(worth[first])
    assert best is not None
    return _trimmed(grid, _capped(grid, best), train_site_s)


def _solve(sites: _Sites, worth: Array) -> tuple[Mask, Mask]:
    """Each site's best schedule if a second of training were worth this: (T, S, L) up, train."""
    shape = (sites.slots + 1, sites.train.shape[1], len(worth))
    on, off = np.zeros(shape), np.zeros(shape)
    rows = np.arange(shape[1])
    gain = sites.train - worth * sites.lengths_s[:, None, None]
    run = np.minimum(gain, sites.idle)
    started = np.full((sites.slots, *shape[1:]), np.inf)
    for t in range(sites.slots - 1, -1, -1):
        on[t] = run[t] + on[t + 1]
        fits = sites.fits[t]
        after = np.where(fits, sites.after[t], sites.slots)
        started[t] = np.where(fits[:, None], sites.start[t] + on[after, rows], np.inf)
        np.minimum(off[t + 1], started[t], out=off[t])
        np.minimum(on[t], off[t], out=on[t])
    return _follow(sites, gain, run, (on, off, started))


def _follow(
    sites: _Sites, gain: Array, run: Array, values: tuple[Array, Array, Array]
) -> tuple[Mask, Mask]:
    on, off, started = values
    up, train = np.zeros(gain.shape, dtype=bool), np.zeros(gain.shape, dtype=bool)
    since = np.broadcast_to(sites.on_from[:, None], gain.shape[1:]).copy()
    for t in range(sites.slots):
        since[(since <= t) & (off[t] < run[t] + on[t + 1] - _TIE)] = _NEVER
        begin = (since == _NEVER) & (started[t] < off[t + 1] - _TIE)
        since = np.where(begin, sites.after[t][:, None], since)
        up[t] = since != _NEVER
        train[t] = (since <= t) & (gain[t] <= sites.idle[t])
    return up, train


def _work_s(grid: Grid, train: Mask) -> Array:
    """Training site-seconds of each of the L schedules: (T, S, L) -> (L,)."""
    together: Array = train.sum(axis=1).astype(np.float64)
    if grid.max_sites is not None:
        together = np.minimum(together, grid.max_sites)
    share = np.where(together >= 2, 1.0 - grid.round_overhead_share, 1.0)
    work: Array = (together * share * grid.lengths_s[:, None]).sum(axis=0)
    return work


def _capped(grid: Grid, schedule: Schedule) -> Schedule:
    """With no more sites up than may be: the dearest stay away in that slot."""
    cap = grid.max_sites
    if cap is None or not (schedule.up.sum(axis=0) > cap).any():
        return schedule
    dear = np.where(schedule.up, grid.prices, np.inf)
    rank = dear.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    allowed = schedule.up & (rank < cap)
    return Schedule(allowed, schedule.train & allowed)


def _trimmed(grid: Grid, schedule: Schedule, train_site_s: float) -> Schedule:
    """Without what is too much: whole stays or their ends, the dearest for their work first."""
    up, train = schedule.up.copy(), schedule.train.copy()
    cost_up = np.where(train, grid.cost(grid.train_w), grid.cost(grid.idle_w))
    excess_s = float(_work_s(grid, train.T[:, :, None])[0]) - train_site_s
    while (cut := _dearest(grid, up, train, cost_up, excess_s)) is not None:
        row, gone, untrained = cut
        up[row, gone] = train[row, gone] = train[row, untrained] = False
        cost_up[row, untrained] = grid.cost(grid.idle_w)[row, untrained]
        excess_s = float(_work_s(grid, train.T[:, :, None])[0]) - train_site_s
    return Schedule(up, train)


Cut = tuple[int, slice, slice]  # site, slots no longer up, slots no longer trained


def _dearest(grid: Grid, up: Mask, train: Mask, cost: Array, excess_s: float) -> Cut | None:
    """The stay, or the end of one, that saves most for the work it gives up, if that is spare."""
    best: tuple[float, int] = (-math.inf, 0)
    found: Cut | None = None
    count, share = train.sum(axis=0), grid.round_overhead_share
    idle = grid.cost(grid.idle_w)
    # The last but one to leave spares the other its overhead.
    work = np.where(count == 2, 1.0 - 2.0 * share, 1.0 - share)
    work = np.where(count == 1, 1.0, work) * grid.lengths_s
    for row in range(len(up)):
        for gone, untrained in _cuts(up[row], train[row], bool(grid.ready_at[row] < math.inf)):
            lost = train[row, gone].copy()
            lost_s = float((work[gone] * lost).sum())
            saved = float(cost[row, gone].sum())
            if untrained != gone:  # it starts later: this slot is for starting now
                lost_s += float(work[untrained].sum())
                saved += float((cost[row] - idle[row])[untrained].sum())
            if lost_s > excess_s + 1e-6:
                continue
            ratio = saved / lost_s if lost_s > 0.0 else math.inf
            if (ratio, gone.start) > best:
                best, found = (ratio, gone.start), (row, gone, untrained)
    return found


def _cuts(up: Mask, train: Mask, runs: bool) -> list[tuple[slice, slice]]:
    """Each stay as a whole, without its last trained slot, and begun a slot later."""
    cuts: list[tuple[slice, slice]] = []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], up.astype(np.int8), [0]])))
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        cuts.append((slice(first, last), slice(first, last)))
        trained = first + np.flatnonzero(train[first:last])
        if len(trained) < 2:
            continue
        end = slice(int(trained[-1]), last)
        cuts.append((end, end))
        if trained[0] > first and not (runs and first == 0):
            cuts.append((slice(first, first + 1), slice(int(trained[0]), int(trained[0]) + 1)))
    return cuts
