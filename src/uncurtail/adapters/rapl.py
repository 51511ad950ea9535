"""RAPL: what this machine's processors and memory draw, by the kernel's energy counters.

They count the whole machine, whoever uses it, and no GPU, disk or fan. Since 2020 the kernel shows
them to root alone, unless somebody permits it.
"""

from collections.abc import Callable
from pathlib import Path

from uncurtail.adapters import clock
from uncurtail.adapters.wattmeter import WattError

POWERCAP = Path("/sys/class/powercap")
# Cores and graphics are parts of their package, and "psys" is all of it again; memory is not.
COUNTED = ("package", "dram")


class Rapl:
    """A `Wattmeter` over every package and its memory."""

    source = "rapl"

    def __init__(
        self, root: Path = POWERCAP, monotonic: Callable[[], float] = clock.monotonic
    ) -> None:
        """`root` holds a folder for each zone.

        Raises:
            WattError: There is no zone that counts.
        """
        self._monotonic = monotonic
        named = ((zone, zone / "name") for zone in sorted(root.glob("intel-rapl*:*")))
        self._zones = [
            zone for zone, name in named if name.is_file() and name.read_text().startswith(COUNTED)
        ]
        if not self._zones:
            raise WattError(f"no energy counter in {root}: this machine needs power_from 'model'")
        self._range_uj = {zone: _count(zone, "max_energy_range_uj") for zone in self._zones}
        self._before: tuple[float, dict[Path, int]] | None = None

    def watts(self) -> float | None:
        """See `Wattmeter.watts`. Counters that wrapped since are continued, once each."""
        now = self._monotonic()
        counts = {zone: _count(zone, "energy_uj") for zone in self._zones}
        before, self._before = self._before, (now, counts)
        if before is None or now <= before[0]:
            return None
        used_uj = 0
        for zone, count in counts.items():
            used = count - before[1][zone]
            used_uj += used if used >= 0 else used + self._range_uj[zone]
        return used_uj / 1e6 / (now - before[0])


def _count(zone: Path, name: str) -> int:
    try:
        return int((zone / name).read_text())
    except PermissionError:
        raise WattError(f"{zone / name} may not be read: run as root, or chmod a+r it") from None
    except (OSError, ValueError) as error:
        raise WattError(f"{zone / name} cannot be read: {error}") from None
