"""Stage 6: what else the same training would have emitted: everywhere at once, or right away.

The method of arXiv:2602.22760, as in `ledger.baselines_kg` for each site alone: the same
site-hours at training power from the run's start, nothing for starting or idling. So every
alternative is counted in its own favour.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from uncurtail.core.ledger import emissions_g
from uncurtail.core.signals import Trace


@dataclass(frozen=True, slots=True)
class RunNow:
    """The same training at the site that was cleanest at the start, at once."""

    site: str
    kg: float | None


def together_kg(
    traces: Mapping[str, Trace], start: float, train_s: float, train_w: Mapping[str, float]
) -> float | None:
    """All these sites always on, sharing the training evenly; None as for one of them."""
    if not traces:
        return None
    each_s = train_s / len(traces)
    grams = [
        emissions_g(trace, start, start + each_s, train_w[site]) for site, trace in traces.items()
    ]
    known = [g for g in grams if g is not None]
    return sum(known) / 1000.0 if len(known) == len(grams) else None


def run_now(
    traces: Mapping[str, Trace], start: float, train_s: float, train_w: Mapping[str, float]
) -> RunNow | None:
    """Not waiting: the cleanest site of the first moment, to the end; None if none was known."""
    values = {site: trace.at(start) for site, trace in traces.items()}
    known = sorted((value, site) for site, value in values.items() if value is not None)
    if not known:
        return None
    site = known[0][1]
    return RunNow(site, _kg(emissions_g(traces[site], start, start + train_s, train_w[site])))


def _kg(grams: float | None) -> float | None:
    return None if grams is None else grams / 1000.0
