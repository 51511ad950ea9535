"""One look for every figure: colours that colour-blind readers can tell apart, and numbers."""

import math
from types import MappingProxyType

from uncurtail.core.fleet import Phase

INK = "#22303c"
MUTED = "#6b7885"
GRID = "#e3e8ec"
WINDOW = "#d5efe0"
DIM = "#f5f2d3"
UNKNOWN = "#c4ccd3"

# Okabe and Ito's palette, in an order whose neighbours differ in lightness, too.
SITE_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a5195", "#8c8c3c",
)  # fmt: skip

PHASE_COLOURS: MappingProxyType[str, str] = MappingProxyType(
    {
        Phase.PROVISIONING: "#f0a93b",
        Phase.IDLE: "#a9b4be",
        Phase.TRAINING: "#00598c",
        Phase.CAPPED: "#66b2dd",
        Phase.DRAINING: "#cc79a7",
        Phase.RELEASING: "#ead0df",
    }
)


def site_colours(sites: list[str]) -> dict[str, str]:
    """A colour for each site, the same in every figure."""
    return {site: SITE_COLOURS[i % len(SITE_COLOURS)] for i, site in enumerate(sites)}


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A number with at least `digits` significant digits and thin spaces; "unknown" for None."""
    if value is None:
        return "unknown"
    text = "0"
    if value != 0:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}".replace(",", "\u202f")
    return f"{text} {unit}".rstrip()


def mass(kg: float | None, digits: int = 3) -> str:
    """Emissions in the unit that reads best: g, kg or t of CO2."""
    if kg is None:
        return "unknown"
    if abs(kg) < 0.1:
        return number(kg * 1000.0, "g", digits)
    return number(kg, "kg", digits) if abs(kg) < 10_000 else number(kg / 1000.0, "t", digits)


def percent(share: float | None) -> str:
    """A share of 0-1 as percent, with a decimal below ten."""
    if share is None:
        return "unknown"
    return f"{share * 100:.1f} %" if 0 < abs(share) < 0.0995 else f"{share * 100:.0f} %"


def count(value: float | None) -> str:
    """How many, with a suffix from thousands on: 934 k, 1.2 M."""
    if value is None:
        return "unknown"
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return number(value / size) + suffix
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """A length of time in the unit that reads best."""
    if seconds is None:
        return "unknown"
    for unit_s, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if abs(seconds) >= 2 * unit_s:
            return number(seconds / unit_s, unit)
    return number(seconds, "s")
