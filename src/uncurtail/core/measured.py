"""Stage 6: whether a measured power counts for a stretch, or the declared one does."""

from collections.abc import Iterable
from typing import Literal

from uncurtail.core.signals import WATT, Kind, Reading, Signal, usable

PowerFrom = Literal["model", "nvml", "rapl", "prometheus"]
MODEL = "model"


def signal(source: str) -> Signal:
    """What the numbers of a measured power are."""
    return Signal(Kind.POWER, WATT, source)


def counted_w(
    reading: Reading | None, now: float, stale_after_s: float, up_since: float, beside_w: float
) -> float | None:
    """The watts to count from `now` on; None where the declared ones must.

    Args:
        reading: The newest measurement; it holds until the next, or until it is stale.
        now: When the stretch begins.
        stale_after_s: How old it may be.
        up_since: When the site left "released": what was measured before is of another session.
        beside_w: What the site draws beside what is measured.
    """
    if reading is None or reading.as_of < up_since:
        return None
    watts = usable(reading, now, stale_after_s, WATT)
    return None if watts is None else watts + beside_w


def unmeasured(missing: Iterable[tuple[str, str]]) -> str | None:
    """What to say of sites (name, source) whose power is not measured though it should be."""
    told = [f"{site} ({source})" for site, source in missing]
    if not told:
        return None
    return f"power is not measured at {', '.join(told)}: declared watts count"
