"""The oracle's batteries and suns: five continuous variables a site and slot, beside its states.

`sun` and `out` (kW) carry load, `sun_in` and `grid_in` (kW) charge the battery, and `stored` (kWh
above the least) is what it holds at the slot's end. What the first two carry costs nothing; what
the grid charges costs as much as load. Throwing charge away is allowed: it only lowers the bound.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.ledger import integrate
from uncurtail.core.microgrid import Microgrid

Array = NDArray[np.float64]
S_PER_H = 3600.0
KINDS = 5


@dataclass(frozen=True, slots=True)
class OwnShape:
    """One site's battery and sun, in kW and kWh; `sun_kw` is the mean of each slot."""

    site: int
    sun_kw: Array
    limit_kw: float
    room_kwh: float
    first_kwh: float
    from_grid: bool


def own_shape(
    site: int, microgrid: Microgrid, start: float, num_slots: int, slot_s: float
) -> OwnShape:
    """A microgrid in slots; where the sun is unknown there is none."""
    section, sun_kw = microgrid.section, np.zeros(num_slots)
    if microgrid.solar is not None and num_slots:
        edges: Array = start + slot_s * np.arange(num_slots + 1, dtype=np.float64)
        sun_kw = integrate(microgrid.solar, edges[:-1], edges[1:])[0] / slot_s / 1000.0
    kwh = section.battery_wh / 1000.0
    return OwnShape(
        site,
        sun_kw,
        microgrid.limit_w / 1000.0,
        kwh * (1.0 - section.battery_min_soc),
        kwh * (section.battery_initial_soc - section.battery_min_soc),
        section.charge_from_curtailed,
    )


def variables(own: OwnShape, kg_per_kw: Array, known: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Costs (kg) and upper bounds of a site's five blocks of variables."""
    num_slots = kg_per_kw.size
    nothing, full = np.zeros(num_slots), np.full(num_slots, own.limit_kw)
    from_grid = np.where(known, full, 0.0) if own.from_grid else nothing
    cost = np.concatenate([-kg_per_kw, -kg_per_kw, nothing, kg_per_kw, nothing])
    upper = np.concatenate([own.sun_kw, full, full, from_grid, np.full(num_slots, own.room_kwh)])
    return cost, upper


def rows(
    own: OwnShape, load_kw: Any, known: NDArray[np.bool_], slot_s: float
) -> tuple[Any, Any, Array]:
    """What holds between a site's load and its own variables.

    Args:
        own: The site's.
        load_kw: Its load as a matrix over all variables of the program without these.
        known: The slots of known intensity; in others the site carries itself, or is off.
        slot_s: The length of a slot.

    Returns:
        Rows over the program's variables, rows over the five blocks, and their limits.
    """
    from scipy import sparse

    num_slots = known.size
    one = sparse.eye_array(num_slots, format="csr")
    hours = slot_s / S_PER_H
    alone = np.flatnonzero(~known)
    nothing = sparse.csr_array((num_slots, load_kw.shape[1]))
    grows = one - sparse.eye_array(num_slots, k=-1)
    first = np.zeros(num_slots)
    first[:1] = own.first_kwh
    mine = sparse.block_array(
        [
            [one, one, None, None, None],  # carries no more than the load
            [one, None, one, None, None],  # the sun is spent once
            [None, None, one, one, None],  # charging has a limit
            [None, hours * one, -hours * one, -hours * one, grows],  # what is stored
        ],
        format="csr",
    )
    carried = sparse.hstack([-one, -one, sparse.csr_array((num_slots, 3 * num_slots))])
    left = sparse.vstack([-load_kw, nothing, nothing, nothing, load_kw[alone]], format="csr")
    right = sparse.vstack([mine, carried.tocsr()[alone]], format="csr")
    limit = np.concatenate(
        [
            np.zeros(num_slots),
            own.sun_kw,
            np.full(num_slots, own.limit_kw),
            first,
            np.zeros(alone.size),
        ]
    )
    return left, right, limit
