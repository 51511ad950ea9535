"""Stage 2, the arithmetic of plans: the cheapest slots in which to get an amount of work done.

A Lagrangian decomposition. Were a second of training worth some price, each site alone could choose
its best sequence of off, provisioning, idle and training, capped or not, by dynamic programming;
the higher the price, the more is trained. The least price at which enough is trained gives the
schedule, and what is too much is taken off its dearest ends. The dual value bounds every schedule
from below.
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
    site's session can train, infinite for one that is released. `capped_w` and `capped_speed` (S,)
    are None where no site can be capped; one that cannot has its full power there.
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
    capped_w: Array | None = None
    capped_speed: Array | None = None

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
    """Per site and slot, (S, T): whether it is up, provisioning included, and whether it trains.

    `capped`: it trains at its capped power.
    """

    up: Mask
    train: Mask
    capped: Mask


class _Sites:
    """What the dynamic programme needs, by slot first: (T, S, 1)."""

    def __init__(self, grid: Grid) -> None:
        self.train = grid.cost(grid.train_w).T[:, :, None]
        self.idle = grid.cost(grid.idle_w).T[:, :, None]
        self.capped: Array | None = None
        self.speed = np.ones((len(grid.prices), 1))
        if grid.capped_w is not None and grid.capped_speed is not None:
            self.capped = grid.cost(grid.capped_w).T[:, :, None]
            self.speed = grid.capped_speed[:, None]
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
        found = _solve(sites, worth)
        enough = np.flatnonzero(_work_s(grid, found[1], found[2]) >= train_site_s)
        if not enough.size:
            return best
        first = int(enough[0])
        best = Schedule(*(mask[:, :, first].T.copy() for mask in found))
        low, high = (float(worth[first - 1]) if first else 0.0), float(worth[first])
    assert best is not None
    return _trimmed(grid, _capped(grid, best), train_site_s)


def _solve(sites: _Sites, worth: Array) -> tuple[Mask, Mask, Mask]:
    """Each site's best if a second of training were worth this: (T, S, L) up, train, capped."""
    shape = (sites.slots + 1, sites.train.shape[1], len(worth))
    on, off = np.zeros(shape), np.zeros(shape)
    rows = np.arange(shape[1])
    second = worth * sites.lengths_s[:, None, None]
    gain = sites.train - second
    slower = np.zeros(gain.shape, dtype=bool)
    if sites.capped is not None:
        capped = sites.capped - sites.speed * second
        slower = capped < gain - _TIE
        gain = np.where(slower, capped, gain)
    run = np.minimum(gain, sites.idle)
    started = np.full((sites.slots, *shape[1:]), np.inf)
    for t in range(sites.slots - 1, -1, -1):
        on[t] = run[t] + on[t + 1]
        fits = sites.fits[t]
        after = np.where(fits, sites.after[t], sites.slots)
        started[t] = np.where(fits[:, None], sites.start[t] + on[after, rows], np.inf)
        np.minimum(off[t + 1], started[t], out=off[t])
        np.minimum(on[t], off[t], out=on[t])
    up, train = _follow(sites, gain, run, (on, off, started))
    return up, train, train & slower


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


def _work_s(grid: Grid, train: Mask, capped: Mask) -> Array:
    """Training site-seconds of each of the L schedules: (T, S, L) -> (L,)."""
    together: Array = train.sum(axis=1).astype(np.float64)
    allowed = together
    if grid.max_sites is not None:
        allowed = np.minimum(together, grid.max_sites)
    share = np.where(allowed >= 2, 1.0 - grid.round_overhead_share, 1.0)
    work: Array = (allowed * share * grid.lengths_s[:, None]).sum(axis=0)
    if grid.capped_speed is None:
        return work
    speeds = np.where(capped, grid.capped_speed[:, None], 1.0)
    # Of more sites than may be up, each is taken to be as fast as their mean.
    mean = (train * speeds).sum(axis=1) / np.maximum(together, 1.0)
    slower: Array = (allowed * mean * share * grid.lengths_s[:, None]).sum(axis=0)
    return slower


def _capped(grid: Grid, schedule: Schedule) -> Schedule:
    """With no more sites up than may be: the dearest stay away in that slot."""
    cap = grid.max_sites
    if cap is None or not (schedule.up.sum(axis=0) > cap).any():
        return schedule
    dear = np.where(schedule.up, grid.prices, np.inf)
    rank = dear.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    allowed = schedule.up & (rank < cap)
    return Schedule(allowed, schedule.train & allowed, schedule.capped & allowed)


class _Trim:
    """A schedule while it loses what is too much; `cost` is what each slot costs while it is up."""

    def __init__(self, grid: Grid, schedule: Schedule) -> None:
        self.grid = grid
        self.up, self.train = schedule.up.copy(), schedule.train.copy()
        self.capped = schedule.capped.copy()
        self.idle = grid.cost(grid.idle_w)
        self.cost = np.where(self.train, grid.cost(grid.train_w), self.idle)
        self.speed = np.ones(self.train.shape)
        # No site can be capped: every slot is taken to be so already.
        self.slow_cost, self.slow_speed = self.cost, self.speed
        if grid.capped_w is not None and grid.capped_speed is not None:
            self.slow_cost = grid.cost(grid.capped_w)
            self.slow_speed = np.broadcast_to(grid.capped_speed[:, None], self.train.shape)
            self.cost = np.where(self.capped, self.slow_cost, self.cost)
            self.speed = np.where(self.capped, self.slow_speed, self.speed)

    def work_s(self) -> float:
        masks = (self.train.T[:, :, None], self.capped.T[:, :, None])
        return float(_work_s(self.grid, *masks)[0])

    def cut(self, row: int, gone: slice, untrained: slice) -> None:
        """Take these slots off: no longer up, and no longer trained."""
        self.up[row, gone] = self.train[row, gone] = self.train[row, untrained] = False
        self.cost[row, untrained] = self.idle[row, untrained]
        self.capped &= self.train

    def slow_down(self, row: int, slot: int) -> None:
        """Cap this slot."""
        self.capped[row, slot] = True
        self.cost[row, slot] = self.slow_cost[row, slot]
        self.speed[row, slot] = self.slow_speed[row, slot]

    def lost_s(self) -> Array:
        """The work that goes with each trained slot, (S, T)."""
        count, share = self.train.sum(axis=0), self.grid.round_overhead_share
        total = np.where(self.train, self.speed, 0.0).sum(axis=0)
        # The last but one to leave spares the other its overhead.
        pair = self.speed * (1.0 - 2.0 * share) - share * (total - 2.0 * self.speed)
        work = np.where(count == 2, pair, self.speed * (1.0 - share))
        lost: Array = np.where(count == 1, self.speed, work) * self.grid.lengths_s
        return lost


def _trimmed(grid: Grid, schedule: Schedule, train_site_s: float) -> Schedule:
    """Without what is too much: whole stays, their ends or their speed, the dearest work first."""
    trim = _Trim(grid, schedule)
    while True:
        excess_s = trim.work_s() - train_site_s
        (worth, _), cut = _dearest(trim, excess_s)
        slower_worth, slower = _dearest_speed(trim, excess_s)
        if slower is not None and slower_worth > worth:
            trim.slow_down(*slower)
        elif cut is not None:
            trim.cut(*cut)
        else:
            return Schedule(trim.up, trim.train, trim.capped)


Cut = tuple[int, slice, slice]  # site, slots no longer up, slots no longer trained


def _dearest(trim: _Trim, excess_s: float) -> tuple[tuple[float, int], Cut | None]:
    """The stay, or the end of one, that saves most for the work it gives up, if that is spare."""
    best: tuple[float, int] = (-math.inf, 0)
    found: Cut | None = None
    up, train, cost, ready_at = trim.up, trim.train, trim.cost, trim.grid.ready_at
    work = trim.lost_s()
    for row in range(len(up)):
        for gone, untrained in _cuts(up[row], train[row], bool(ready_at[row] < math.inf)):
            lost_s = float((work[row, gone] * train[row, gone]).sum())
            saved = float(cost[row, gone].sum())
            if untrained != gone:  # it starts later: this slot is for starting now
                lost_s += float(work[row, untrained].sum())
                saved += float((cost[row] - trim.idle[row])[untrained].sum())
            if lost_s > excess_s + 1e-6:
                continue
            ratio = saved / lost_s if lost_s > 0.0 else math.inf
            if (ratio, gone.start) > best:
                best, found = (ratio, gone.start), (row, gone, untrained)
    return best, found


def _dearest_speed(trim: _Trim, excess_s: float) -> tuple[float, tuple[int, int] | None]:
    """The slot at full power that saves most for the work it gives up capped, if that is spare."""
    share = np.where(trim.train.sum(axis=0) >= 2, 1.0 - trim.grid.round_overhead_share, 1.0)
    lost_s = (trim.speed - trim.slow_speed) * share * trim.grid.lengths_s
    saved = trim.cost - trim.slow_cost
    may = trim.train & ~trim.capped & (lost_s > 0.0) & (lost_s <= excess_s + 1e-6)
    if not (may & (saved > 0.0)).any():
        return -math.inf, None
    worth = np.where(may, saved, -math.inf) / np.where(may, lost_s, 1.0)
    row, slot = divmod(int(worth.argmax()), worth.shape[1])
    return float(worth[row, slot]), (row, slot)


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
