"""Vessim's batteries and solar panels, behind the grid connections of the sites that have them.

Vessim keeps the state of charge and says what flows; `core.microgrid` says the same without it, for
virtual time and for what comes next, and tests hold the two together.
"""

import math
from collections.abc import Mapping

from uncurtail.core.microgrid import Flow, Microgrid, Mode

# Vessim has no battery of no size; this one, with a C-rate of 0, neither takes nor gives.
_NO_BATTERY_WH = 1e-9


class VessimOwnPower:
    """A `ports.OwnPower` over one Vessim microgrid a site. Times are unix seconds, powers W.

    Importing Vessim takes half a second, and the constructor does it.
    """

    def __init__(
        self, microgrids: Mapping[str, Microgrid], start: float, soc: Mapping[str, float]
    ) -> None:
        """Nothing flows before `start`; `soc` is what an earlier coordinator left, where one did.

        Raises:
            ValueError: `start` is not finite.
        """
        if not math.isfinite(start):
            raise ValueError(f"start must be finite unix seconds, got {start}")
        self._drawn_until = start
        self._sites = {
            name: _Site(microgrid, start, soc.get(name, microgrid.section.battery_initial_soc))
            for name, microgrid in microgrids.items()
        }

    @property
    def soc(self) -> dict[str, float]:
        """Each site's state of charge, as of the last draw."""
        return {name: site.soc for name, site in self._sites.items()}

    def draw(
        self, start: float, end: float, load_w: Mapping[str, float], modes: Mapping[str, Mode]
    ) -> dict[str, Flow]:
        """Hold the loads over [start, end); the sun must not change within, nor may a load.

        Raises:
            ValueError: The times leave a hole, are empty or run backwards, or the loads are not
                one finite, non-negative number a site. Nothing was drawn.
        """
        if start != self._drawn_until or not start < end < math.inf:
            until = self._drawn_until
            raise ValueError(f"own power over [{start}, {end}) does not follow on {until}: tile it")
        if load_w.keys() != self._sites.keys():
            wrong = sorted(load_w.keys() ^ self._sites.keys())
            raise ValueError(f"own power needs the load of exactly its sites: see {wrong}")
        for name, watts in load_w.items():
            if not 0.0 <= watts < math.inf:
                raise ValueError(f"load of {name} must be finite and not negative, got {watts} W")
        self._drawn_until = end
        return {
            name: site.draw(start, end, load_w[name], modes[name])
            for name, site in self._sites.items()
        }


class _Site:
    """One microgrid of Vessim's: load, sun, battery and grid; seconds since `start`."""

    def __init__(self, microgrid: Microgrid, start: float, soc: float) -> None:
        import vessim

        self._own = microgrid
        self._start = start
        self._load, self._sun = vessim.StaticSignal(0.0), vessim.StaticSignal(0.0)
        section = microgrid.section
        self._min_soc = section.battery_min_soc
        self._battery = vessim.SimpleBattery(
            "battery",
            capacity=max(section.battery_wh, _NO_BATTERY_WH),
            # A series of ten digits may say a little less than the least.
            initial_soc=min(1.0, max(soc, section.battery_min_soc)),
            min_soc=section.battery_min_soc,
            c_rate=section.battery_c_rate if section.battery_wh > 0.0 else 0.0,
        )
        self._policy = vessim.DefaultDispatchPolicy()
        self._microgrid = vessim.Microgrid(
            step_size=1,
            actors=[vessim.Consumer("site", self._load), vessim.Producer("sun", self._sun)],
            dispatchables=[self._battery, vessim.GridConnection()],
            policy=self._policy,
        )

    @property
    def soc(self) -> float:
        return float(self._battery.soc())

    def draw(self, start: float, end: float, load_w: float, mode: Mode) -> Flow:
        sun_w = self._own.solar_w(start)
        self._load.set_value(load_w)
        self._sun.set_value(sun_w)
        # At or below its least charge, Vessim's battery gives nothing and still takes.
        self._battery.min_soc = self._min_soc if mode is Mode.USE else max(self._min_soc, self.soc)
        # Of a fixed charge Vessim takes what the battery can hold; the grid balances it.
        self._policy.charge_power = self._own.limit_w if mode is Mode.CHARGE else 0.0
        begin, until = start - self._start, end - self._start
        # Both signals are constant, so the whole second at which Vessim samples them is free.
        self._microgrid.sample(int(begin))
        self._microgrid.advance(begin, duration=end - start)
        self._microgrid.finish(until)
        return self._flow(load_w, sun_w)

    def _flow(self, load_w: float, sun_w: float) -> Flow:
        """Vessim counts charging and export positive."""
        into_w = float(self._battery.current_power)
        used_w = min(load_w, sun_w)
        charge_w = max(0.0, into_w)
        solar_charge_w = min(charge_w, sun_w - used_w)
        return Flow(
            solar_w=used_w,
            battery_w=max(0.0, -into_w),
            grid_w=max(0.0, -float(self._microgrid.p_grid)),
            solar_charge_w=solar_charge_w,
            grid_charge_w=charge_w - solar_charge_w,
            soc=self.soc,
        )
