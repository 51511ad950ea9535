"""Own power adds up: batteries and suns, by the series, against what the config says of them."""

from collections.abc import Iterator, Sequence

import numpy as np

from uncurtail.config import ConfigError, parse
from uncurtail.core.events import iso
from uncurtail.core.ledger import J_PER_KWH, integrate
from uncurtail.core.microgrid import Flow, Microgrid, MicrogridSection
from uncurtail.core.signals import in_force, usable
from uncurtail.runfolder import PowerRow
from uncurtail.sourcing import microgrids
from uncurtail.verify.energy import DIGITS_RELATIVE, ROUNDED_S
from uncurtail.verify.evidence import Evidence, Finding, agree, judged

# A series of ten digits holds a state of charge to well below this.
SOC_ABSOLUTE = 1e-6
WATTS_ABSOLUTE = 0.01


def own_power(run: Evidence) -> Finding:
    """Load is sun, battery and grid; batteries hold what went in; no sun is spent twice."""
    if all(site.microgrid is None for site in run.setup.sites.values()):
        return Finding(True, "no site has a battery or solar panels")
    start = run.events[0].t
    end = max((rows[-1].segment.end for rows in run.power.values() if rows), default=start)
    try:
        found = microgrids(parse(run.setup.raw, "resolved.json"), start, end - start + 1.0)
    except ConfigError as error:
        return Finding(None, f"the sun cannot be computed again: {error}")
    problems: list[str] = []
    own_j = 0.0
    for name, microgrid in found.items():
        rows = run.power.get(name, [])
        problems += _site(run, name, microgrid, rows)
        own_j += sum(_own_w(row) * (row.segment.end - row.segment.start) for row in rows)
    return judged(
        problems, f"{len(found)} sites, {own_j / J_PER_KWH:.3f} kWh of load from sun and batteries"
    )


def _own_w(row: PowerRow) -> float:
    flow = row.segment.flow
    return 0.0 if flow is None else flow.solar_w + flow.battery_w


def _site(
    run: Evidence, name: str, microgrid: Microgrid, rows: Sequence[PowerRow]
) -> Iterator[str]:
    section, policy = microgrid.section, run.setup.policy
    soc = section.battery_initial_soc
    readings = run.readings.get(name, [])
    for row in rows:
        segment, flow = row.segment, row.segment.flow
        if flow is None:
            continue
        where = f"power.csv of {name} at {iso(segment.start)}"
        load_w = flow.solar_w + flow.battery_w + flow.grid_w - flow.grid_charge_w
        if not _same(load_w, segment.power_w):
            yield f"{where}: sun, battery and grid give {load_w:.6g} W of {segment.power_w:.6g} W"
        seconds = segment.end - segment.start
        yield from (f"{where}: {problem}" for problem in _battery(section, flow, soc, seconds))
        yield from (f"{where}: {problem}" for problem in _sun(microgrid, row))
        if flow.grid_charge_w > WATTS_ABSOLUTE:
            reading = in_force(readings, segment.start)
            value = usable(reading, segment.start, policy.stale_after_s)
            clean = value is not None and value < policy.enter_below_g_per_kwh
            if not (section.charge_from_curtailed and clean):
                yield f"{where}: the grid charges the battery at {value} g/kWh"
        soc = flow.soc


def _battery(section: MicrogridSection, flow: Flow, soc: float, seconds: float) -> Iterator[str]:
    """What is wrong with a row's battery, which had `soc` before it."""
    into_w = flow.solar_charge_w + flow.grid_charge_w
    limit_w = section.battery_c_rate * section.battery_wh
    if min(flow.battery_w, flow.solar_charge_w, flow.grid_charge_w, flow.grid_w) < 0.0:
        yield "a flow is negative"
    if max(flow.battery_w, into_w) > limit_w + WATTS_ABSOLUTE:
        yield f"the battery's flow is above {limit_w:g} W"
    if not section.battery_min_soc - SOC_ABSOLUTE <= flow.soc <= 1.0 + SOC_ABSOLUTE:
        yield f"a state of charge of {flow.soc:g} cannot be"
    if section.battery_wh > 0.0:
        soc += (into_w - flow.battery_w) * seconds / 3600.0 / section.battery_wh
    if not agree(soc, flow.soc, relative=DIGITS_RELATIVE, absolute=SOC_ABSOLUTE):
        yield f"the battery should hold {soc:.6g}, and holds {flow.soc:.6g}"


def _sun(microgrid: Microgrid, row: PowerRow) -> Iterator[str]:
    """Where more sun is spent than shone."""
    segment, flow = row.segment, row.segment.flow
    if flow is None:
        return
    seconds = segment.end - segment.start
    shone_j = most_w = 0.0
    if microgrid.solar is not None:
        edges = np.array([segment.start]), np.array([segment.end])
        shone_j = float(integrate(microgrid.solar, *edges)[0][0])
        most_w = max(microgrid.solar_w(segment.start), microgrid.solar_w(segment.end))
    spent_j = (flow.solar_w + flow.solar_charge_w) * seconds
    # Rows are cut at whole milliseconds.
    if spent_j > shone_j * (1.0 + DIGITS_RELATIVE) + most_w * ROUNDED_S + WATTS_ABSOLUTE * seconds:
        yield f"{spent_j:.6g} J of sun are spent, {shone_j:.6g} J shone"


def _same(left_w: float, right_w: float) -> bool:
    return agree(left_w, right_w, relative=DIGITS_RELATIVE, absolute=WATTS_ABSOLUTE)
