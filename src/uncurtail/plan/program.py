"""The oracle's mixed-integer program: slots, states and costs as sparse matrices for HiGHS.

Variables, one of each for every site and slot: `up` (provisioned), `train` for each level (full
power, and capped where a site can be; at most `up` in sum), `start` (1 where a site comes up).
Behind them, for the slots in `shared`, `share` of every level and site: it trains at that level
together with another site. Slots without `share` ignore that overhead: they only lower the bound.
Last come the variables of batteries and suns, where there are any (`ownprogram.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.ledger import J_PER_KWH, integrate
from uncurtail.core.signals import Trace
from uncurtail.plan import ownprogram
from uncurtail.plan.ownprogram import OwnShape

Array = NDArray[np.float64]
# A value is whole if it is this near to a whole number: HiGHS's own tolerance.
WHOLE = 1e-6


@dataclass(frozen=True, slots=True)
class Shape:
    """What the matrices need to know of a problem; powers in W, one array item a site.

    `known` (sites, slots) is gCO2/kWh, NaN where a site must be off, or carry itself if it is in
    `own`; `leads` is how much of each slot before it a start takes, nearest first. `train_w` and
    `speeds` are (levels, sites): what a site draws at a level, and which share of a slot's work it
    does.
    """

    known: Array
    slot_s: float
    train_w: Array
    speeds: Array
    idle_w: Array
    provision_w: Array
    leads: tuple[tuple[float, ...], ...]
    slots_needed: float
    overhead_share: float
    max_sites: int | None
    own: tuple[OwnShape, ...] = ()

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Where a site may be up, shape (sites, slots)."""
        usable: NDArray[np.bool_] = np.isfinite(self.known)
        for own in self.own:
            usable[own.site] = True
        return usable


@dataclass(frozen=True, slots=True)
class Program:
    """Minimise `cost` (kg) with 0 <= variables <= `upper` and `matrix` @ variables <= `limit`."""

    cost: Array
    upper: Array
    matrix: Any
    limit: Array
    num_sites: int
    num_slots: int
    num_levels: int
    shared: NDArray[np.bool_]

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which variables must be whole: `up` and `train`; the others then are by themselves."""
        whole = np.zeros(self.cost.size, dtype=bool)
        for site in range(self.num_sites):
            whole[self.at(site, 0) : self.at(site, 1 + self.num_levels)] = True
        return whole

    def at(self, site: int, kind: int) -> int:
        """Where a site's variables begin: kind 0 is `up`, then `train` by level, then `start`."""
        return ((2 + self.num_levels) * site + kind) * self.num_slots

    def missed(self, variables: Array) -> NDArray[np.bool_]:
        """The slots in which sites train together and this program does not know that it costs."""
        trains = self.trains(variables).sum(axis=0)
        together: NDArray[np.bool_] = (trains > 1.0 + WHOLE) & ~self.shared
        return together

    def states(self, variables: Array) -> Array:
        """`up` and `train` by level of every site, shape (sites, 1 + levels, slots)."""
        kinds = 2 + self.num_levels
        blocks = variables[: kinds * self.num_sites * self.num_slots]
        return blocks.reshape(self.num_sites, kinds, self.num_slots)[:, :-1]

    def trains(self, variables: Array) -> Array:
        """Whether a site trains, at whichever level; shape (sites, slots)."""
        trains: Array = self.states(variables)[:, 1:].sum(axis=1)
        return trains


def slot_means(trace: Trace, start: float, num_slots: int, slot_s: float) -> Array:
    """The mean intensity (gCO2/kWh) of each slot; NaN where any of it is unknown."""
    edges: Array = start + slot_s * np.arange(num_slots + 1, dtype=np.float64)
    amounts, known_s = integrate(trace, edges[:-1], edges[1:])
    whole: Array = np.where(known_s >= slot_s * (1.0 - 1e-6), amounts / slot_s, np.nan)
    return whole


def build(shape: Shape, shared: NDArray[np.bool_]) -> Program:
    """The program of a problem that knows of shared rounds in the slots `shared`."""
    from scipy import sparse

    num_sites, num_slots = shape.known.shape
    sites = [_site(shape, site) for site in range(num_sites)]
    cost = np.concatenate([site[0] for site in sites])
    upper = np.concatenate([site[1] for site in sites])
    rows = sparse.block_diag([site[2] for site in sites], format="csr")
    limit = np.concatenate([site[3] for site in sites])
    num_levels = len(shape.speeds)
    yields = [value for speeds in shape.speeds.T for value in (0.0, *-speeds, 0.0)]
    work = np.repeat(yields, num_slots)
    count = num_levels * num_sites * int(shared.sum())
    if count:
        share_rows, share_limit = _sharing(num_sites, num_levels, shared)
        rows = sparse.vstack([_widen(rows, count), share_rows], format="csr")
        limit = np.concatenate([limit, share_limit])
        saved_w = (shape.train_w - shape.idle_w) * shape.overhead_share
        kg_per_w, usable = _kg_per_w(shape), shape.usable.astype(float)
        for of_level in saved_w:
            cost = np.append(cost, -(kg_per_w * of_level[:, None])[:, shared])
            upper = np.append(upper, usable[:, shared])
        lost = np.repeat(shape.overhead_share * shape.speeds.ravel(), int(shared.sum()))
        work = np.append(work, lost)
    extra, bound = [sparse.csr_array(work[None])], [np.array([-shape.slots_needed])]
    if shape.max_sites is not None:
        extra.append(_widen(_places(shape), count))
        bound.append(np.full(num_slots, float(shape.max_sites)))
    matrix = sparse.vstack([rows, *extra], format="csr")
    limit = np.concatenate([limit, *bound])
    program = Program(cost, upper, matrix, limit, num_sites, num_slots, num_levels, shared)
    for own in shape.own:
        program = _with_own(shape, program, own)
    return program


def _with_own(shape: Shape, program: Program, own: OwnShape) -> Program:
    """The program with one site's battery and sun."""
    from scipy import sparse

    known = np.isfinite(shape.known[own.site])
    cost, upper = ownprogram.variables(own, 1000.0 * _kg_per_w(shape)[own.site], known)
    load_kw = _load_kw(shape, program, own.site)
    left, right, limit = ownprogram.rows(own, load_kw, known, shape.slot_s)
    return replace(
        program,
        cost=np.append(program.cost, cost),
        upper=np.append(program.upper, upper),
        matrix=sparse.block_array([[program.matrix, None], [left, right]], format="csr"),
        limit=np.append(program.limit, limit),
    )


def _load_kw(shape: Shape, program: Program, site: int) -> Any:
    """What a site draws in each slot (kW), as a matrix over all variables so far."""
    from scipy import sparse

    num_sites, num_slots = shape.known.shape
    one = sparse.eye_array(num_slots, format="csr")
    ahead = sparse.csr_array((num_slots, num_slots))
    for back, share in enumerate(shape.leads[site], start=1):
        ahead = ahead + share * sparse.eye_array(num_slots, k=back)
    idle_w = shape.idle_w[site]
    extra_w = shape.train_w[:, site] - idle_w  # at each level
    parts = [sparse.csr_array((num_slots, program.at(site, 0)))]
    parts += [idle_w * one, *(watts * one for watts in extra_w), shape.provision_w[site] * ahead]
    behind = program.at(num_sites, 0) - program.at(site + 1, 0)
    parts.append(sparse.csr_array((num_slots, behind)))
    if program.shared.any():
        pick = one[:, np.flatnonzero(program.shared)]
        for watts in extra_w:
            saved = [0.0 * pick] * num_sites
            saved[site] = -watts * shape.overhead_share * pick
            parts += saved
    width = sum(part.shape[1] for part in parts)
    parts.append(sparse.csr_array((num_slots, program.cost.size - width)))
    return sparse.hstack(parts, format="csr") / 1000.0


def _kg_per_w(shape: Shape) -> Array:
    """kgCO2 for a watt held over each slot; 0 where unknown, which `upper` forbids."""
    return np.nan_to_num(shape.known) * (shape.slot_s / J_PER_KWH / 1000.0)


def _site(shape: Shape, site: int) -> tuple[Array, Array, Any, Array]:
    """Costs, upper bounds, rows and their limits of one site's `up`, `train`, `start`."""
    from scipy import sparse

    num_slots = shape.known.shape[1]
    kg_per_w = _kg_per_w(shape)[site]
    usable = shape.usable[site]
    start_kg, may_start = np.zeros(num_slots), usable.copy()
    ahead = sparse.csr_array((num_slots, num_slots))
    for back, share in enumerate(shape.leads[site], start=1):
        start_kg[back:] += shape.provision_w[site] * share * kg_per_w[: num_slots - back]
        may_start[:back] = False
        may_start[back:] &= usable[: num_slots - back]
        ahead = ahead + sparse.eye_array(num_slots, k=back)
    idle_w, train_w = shape.idle_w[site], shape.train_w[:, site]
    trains = [kg_per_w * (watts - idle_w) for watts in train_w]
    cost = np.concatenate([kg_per_w * idle_w, *trains, start_kg])
    upper = np.concatenate([usable, *[usable] * len(train_w), may_start]).astype(float)
    one = sparse.eye_array(num_slots, format="csr")
    rises = one - sparse.eye_array(num_slots, k=-1)
    gap = [None] * len(train_w)
    rows = sparse.block_array(
        [
            [-one, *[one] * len(train_w), None],  # trains only while up
            [rises, *gap, -one],  # comes up only by a start
            [one, *gap, ahead],  # is off while it is provisioned (convex hull of up and start)
        ],
        format="csr",
    )
    limit = np.repeat([0.0, 0.0, 1.0], num_slots)
    return cost, upper, rows, limit


def _sharing(num_sites: int, num_levels: int, shared: NDArray[np.bool_]) -> tuple[Any, Array]:
    """`share` is 1 exactly where a site at its level and any other train: a product with a max."""
    from scipy import sparse

    count = int(shared.sum())
    one = sparse.eye_array(count, format="csr")
    pick = sparse.eye_array(shared.size, format="csr")[np.flatnonzero(shared)]
    none = sparse.csr_array(pick.shape)
    rows, limits = [], []
    levels = range(num_levels)
    at_levels = [(level, site) for level in levels for site in range(num_sites)]

    def row(
        trains: dict[tuple[int, int], float], which: tuple[int, int], share: float, limit: float
    ) -> None:
        blocks = []
        for other in range(num_sites):
            blocks += [none, *(trains.get((level, other), 0.0) * pick for level in levels), none]
        blocks += [(share if at == which else 0.0) * one for at in at_levels]
        rows.append(sparse.hstack(blocks, format="csr"))
        limits.append(np.full(count, limit))

    for which in at_levels:
        others = [at for at in at_levels if at[1] != which[1]]
        for other in range(num_sites):
            if other != which[1]:
                row(
                    dict.fromkeys([which, *((level, other) for level in levels)], 1.0),
                    which,
                    -1.0,
                    1.0,
                )
        row(dict.fromkeys(others, -1.0), which, 1.0, 0.0)
        row({which: -1.0}, which, 1.0, 0.0)
    return sparse.vstack(rows, format="csr"), np.concatenate(limits)


def _places(shape: Shape) -> Any:
    """How many sites are up or being provisioned in each slot."""
    from scipy import sparse

    num_slots = shape.known.shape[1]
    one = sparse.eye_array(num_slots, format="csr")
    none = sparse.csr_array((num_slots, num_slots))
    blocks = []
    for lead in shape.leads:
        ahead = none
        for back in range(1, len(lead) + 1):
            ahead = ahead + sparse.eye_array(num_slots, k=back)
        blocks += [one, *[none] * len(shape.speeds), ahead]
    return sparse.hstack(blocks, format="csr")


def _widen(rows: Any, columns: int) -> Any:
    from scipy import sparse

    return sparse.hstack([rows, sparse.csr_array((rows.shape[0], columns))], format="csr")
