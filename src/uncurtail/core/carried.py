"""Stage 2: which of a site's training its own power carries alone: all of it, or the capped one."""

from collections.abc import Iterator

from uncurtail.core.microgrid import Carried, MicrogridSection, Own, carried_until
from uncurtail.core.policy import Costs, pays_s


def carried(
    section: MicrogridSection,
    costs: Costs,
    own: Own,
    now: float,
    *,
    up: bool,
    before: Carried | None,
) -> Carried | None:
    """What the site may train on its own power alone before it is asked again; None: nothing.

    Full power where that is carried, else capped power. Each has its own hysteresis: what carried
    full power until now must promise as much as ever to be counted on for less.

    Args:
        section: The site's.
        costs: The site's; without `capped` it is never capped.
        own: What it has at `now`.
        now: The time.
        up: Whether it has been started.
        before: What it counted on until now.
    """
    for capped, power_w, lasts_s in _levels(costs, own):
        start_s = None if up else pays_s(section.start_share, costs, power_w)
        counted = before is not None and before.capped is capped
        until = carried_until(section, own._replace(lasts_s=lasts_s), start_s, now, before=counted)
        if until is not None:
            return Carried(until, capped)
    return None


def _levels(costs: Costs, own: Own) -> Iterator[tuple[bool, float, float]]:
    """Whether capped, at which power (W), and how long own power lasts then, best first."""
    yield False, costs.train_power_w, own.lasts_s
    if costs.capped is not None:
        yield True, costs.capped.power_w, own.capped_lasts_s
