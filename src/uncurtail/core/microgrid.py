"""Stage 2: batteries and solar panels at a site: where its power comes from, and for how long.

The order is fixed: the load takes the sun first; what is left of the sun charges the battery, and
beyond that it is given away. What the sun does not cover comes from the battery, unless the grid
is curtailed: then the grid carries it and the charge is spared for the time after the window.
Nothing is lost in the battery, as in Vessim's `SimpleBattery`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from uncurtail.core.section import Section
from uncurtail.core.signals import Trace

S_PER_H = 3600.0
# The sun is believed to shine on as it does for so long, and not at all behind that: the next hour
# is about as far as "as now" holds, and a night must never be a surprise.
SUN_HELD_S = 3600.0
# How often a site with power of its own is looked at again: as often as signals are published.
LOOK_AGAIN_S = 300.0
# Stretches shorter than this are not cut: series hold whole milliseconds.
SHORTEST_S = 1e-3


class MicrogridSection(Section):
    """What a site has behind its grid connection, and when that is enough to train on."""

    battery_wh: float = Field(default=0.0, ge=0)
    battery_initial_soc: float = Field(default=0.5, ge=0, le=1)
    battery_min_soc: float = Field(default=0.1, ge=0, lt=1)
    # Charged and discharged with at most so many times its capacity an hour.
    battery_c_rate: float = Field(default=0.5, gt=0)
    # Fill the battery from the grid, too, while the grid is known to be curtailed; never otherwise.
    charge_from_curtailed: bool = False
    solar_peak_w: float = Field(default=0.0, ge=0)
    # A CSV with a time column and one in W; unset: made-up weather (core/solar.py).
    solar_path: str | None = None
    solar_column: str | None = None
    solar_latitude: float = Field(default=35.0, ge=-66, le=66)
    solar_seed: int | None = Field(default=None, ge=0)  # unset: energy.seed
    # A start pays when its energy is at most this share of the training that it buys, as in
    # `lookahead`; a site that is up already goes over to its own power if that lasts so long.
    start_share: float = Field(default=0.03, gt=0, le=1)
    resume_s: float = Field(default=900.0, gt=0)
    # Leave so long before the charge ends that the last step is done: no less than one step.
    leave_before_s: float = Field(default=60.0, ge=0)

    @model_validator(mode="after")
    def _there_is_something(self) -> Self:
        if self.battery_wh == 0.0 and self.solar_peak_w == 0.0:
            raise ValueError("a microgrid needs battery_wh or solar_peak_w (with solar_path, too)")
        if self.battery_initial_soc < self.battery_min_soc:
            raise ValueError("battery_initial_soc is below battery_min_soc: raise it")
        if (self.solar_path is None) != (self.solar_column is None):
            raise ValueError("solar_path and solar_column (in W) go together")
        if self.leave_before_s >= self.resume_s:
            raise ValueError("leave_before_s is not below resume_s: the site would flap")
        return self


class Mode(StrEnum):
    """What the battery is for at the moment."""

    USE = "use"  # the grid is dirty or unknown: the battery helps
    SPARE = "spare"  # the grid is curtailed: the charge is kept
    CHARGE = "charge"  # the grid is curtailed, and fills it


@dataclass(frozen=True, slots=True)
class Flow:
    """Average powers (W, none negative) over a stretch, and the state of charge at its end.

    `solar_w` and `battery_w` went into the load, `solar_charge_w` and `grid_charge_w` into the
    battery; `grid_w` is all that the grid gave. So load = solar + battery + grid - grid charge.
    """

    solar_w: float
    battery_w: float
    grid_w: float
    solar_charge_w: float
    grid_charge_w: float
    soc: float


class Own(NamedTuple):
    """What a site has of its own at some time.

    `soc` is its state of charge, 0-1; `surplus_w` what the sun yields beyond training power
    (negative: short of it); `lasts_s` for how long sun and battery carry all of its training, and
    `capped_lasts_s` all of its capped training, 0 where it knows none.
    """

    soc: float
    surplus_w: float
    lasts_s: float
    capped_lasts_s: float = 0.0


class Carried(NamedTuple):
    """Until when own power alone carries a site's training, full or `capped`."""

    until: float
    capped: bool = False


@dataclass(frozen=True, slots=True)
class Microgrid:
    """A site's battery and sun; `solar` is in W, None without panels."""

    section: MicrogridSection
    solar: Trace | None = None

    @property
    def limit_w(self) -> float:
        """The most that the battery takes or gives."""
        return self.section.battery_c_rate * self.section.battery_wh

    def solar_w(self, t: float) -> float:
        """What the panels yield; nothing where nobody knows."""
        return 0.0 if self.solar is None else self.solar.at(t) or 0.0

    def mode(self, value: float | None, enter_below_g_per_kwh: float) -> Mode:
        """By the grid's usable intensity; unknown is not curtailed."""
        if value is None or value >= enter_below_g_per_kwh:
            return Mode.USE
        return Mode.CHARGE if self.section.charge_from_curtailed else Mode.SPARE

    def flow(self, soc: float, load_w: float, t: float, seconds: float, mode: Mode) -> Flow:
        """What flows over [t, t + seconds), in which the sun does not change.

        Where the battery gets full or empty meanwhile, the average over the stretch is the same.
        """
        section, solar_w = self.section, self.solar_w(t)
        used_w = min(load_w, solar_w)
        room_w = max(0.0, 1.0 - soc) * section.battery_wh * S_PER_H / seconds
        stored_w = max(0.0, soc - section.battery_min_soc) * section.battery_wh * S_PER_H / seconds
        most_w = min(self.limit_w, room_w)
        solar_charge_w = min(solar_w - used_w, most_w)
        grid_charge_w = most_w - solar_charge_w if mode is Mode.CHARGE else 0.0
        missing_w = load_w - used_w
        battery_w = min(missing_w, self.limit_w, stored_w) if mode is Mode.USE else 0.0
        if section.battery_wh > 0.0:
            net_w = solar_charge_w + grid_charge_w - battery_w
            soc = min(1.0, max(0.0, soc + net_w * seconds / S_PER_H / section.battery_wh))
        grid_w = missing_w - battery_w + grid_charge_w
        return Flow(used_w, battery_w, grid_w, solar_charge_w, grid_charge_w, soc)

    def walk(
        self, soc: float, load_w: float, span: tuple[float, float], mode: Mode
    ) -> Iterator[tuple[float, float, Flow]]:
        """A stretch of equal load and mode, cut where the sun changes, or the battery's flow.

        Yields:
            (start, end, what flows); within each all powers are constant.
        """
        start, until = span
        while start < until:
            end = until if self.solar is None else min(until, self.solar.next_change(start))
            end = self._turn(soc, load_w, (start, end), mode)
            flow = self.flow(soc, load_w, start, end - start, mode)
            yield start, end, flow
            soc, start = flow.soc, end

    def _turn(self, soc: float, load_w: float, span: tuple[float, float], mode: Mode) -> float:
        """When the battery gets full or empty within the span, else the span's end."""
        start, end = span
        # For a moment, so short that no limit of energy counts, it flows as it can.
        first = self.flow(soc, load_w, start, SHORTEST_S, mode)
        net_w = first.solar_charge_w + first.grid_charge_w - first.battery_w
        if net_w == 0.0:
            return end
        edge = 1.0 if net_w > 0.0 else self.section.battery_min_soc
        in_s = (edge - soc) * self.section.battery_wh * S_PER_H / net_w
        return start + in_s if SHORTEST_S < in_s < end - start - SHORTEST_S else end

    def own(self, soc: float, t: float, load_w: float, capped_w: float | None = None) -> Own:
        """What the site has at `t` for a load, and for a lesser one."""
        solar_w = self.solar_w(t)
        lasts_s = self._lasts_s(soc, solar_w, load_w)
        capped_s = 0.0 if capped_w is None else self._lasts_s(soc, solar_w, capped_w)
        return Own(soc, solar_w - load_w, lasts_s, capped_s)

    def _lasts_s(self, soc: float, solar_w: float, load_w: float) -> float:
        """How long sun and battery carry all of a load: no forecast, see `SUN_HELD_S`."""
        stored_wh = max(0.0, soc - self.section.battery_min_soc) * self.section.battery_wh
        missing_w = load_w - solar_w
        if missing_w > self.limit_w:
            return 0.0
        if missing_w > 0.0 and stored_wh * S_PER_H <= missing_w * SUN_HELD_S:
            return stored_wh * S_PER_H / missing_w
        if load_w > self.limit_w:
            return SUN_HELD_S
        most_wh = (1.0 - self.section.battery_min_soc) * self.section.battery_wh
        into_w = min(-missing_w, self.limit_w)
        left_wh = min(most_wh, stored_wh + into_w * SUN_HELD_S / S_PER_H)
        return math.inf if load_w == 0.0 else SUN_HELD_S + left_wh * S_PER_H / load_w


def carried_until(
    section: MicrogridSection, own: Own, start_s: float | None, now: float, *, before: bool
) -> float | None:
    """Until when a site may train on its own power alone before it is asked again; None: not now.

    Hysteresis over how long that power lasts: it must promise much to be counted on, and then
    carries the site until almost nothing is left.

    Args:
        section: The site's.
        own: What it has at `now`.
        start_s: How long training must go on to pay for a start; None for a site that is up.
        now: The time.
        before: Whether it counted on its own power until now.
    """
    left_s = own.lasts_s - section.leave_before_s
    if before and start_s is None:
        # What is planned to the second must not go on for a rounding.
        counts = left_s > SHORTEST_S
    else:
        counts = own.lasts_s >= max(section.resume_s, start_s or 0.0)
    return now + min(left_s, LOOK_AGAIN_S) if counts else None
