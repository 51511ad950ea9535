"""Stage 3: who may start where not all may be up at once; the loop and the simulator ask it."""

import math
from collections.abc import Mapping


def admitted(
    wanting: Mapping[str, float | None], num_up: int, max_sites: int | None
) -> frozenset[str]:
    """Those of the sites that want to start which may start now.

    The cleanest goes first; equal ones in the order given, those of unknown power last. Who is up
    is never stopped for another. Nothing is remembered, so a new coordinator decides the same.

    Args:
        wanting: The released sites that want to be up and could start now, each with its usable
            intensity (g/kWh).
        num_up: How many sites are up: all that are not released, draining ones included.
        max_sites: How many may be up; None for all.
    """
    if max_sites is None:
        return frozenset(wanting)
    rising = sorted(wanting, key=lambda site: _or_last(wanting[site]))
    return frozenset(rising[: max(0, max_sites - num_up)])


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value
