"""Energy adds up: the feed's power series, the phase events and the ledger tell the same joules."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from uncurtail.core.events import SitePhase, iso
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment, Tally
from uncurtail.core.measured import MODEL, counted_w
from uncurtail.core.signals import Reading, in_force
from uncurtail.runfolder import PowerRow
from uncurtail.verify.evidence import Evidence, Finding, agree, judged

RELATIVE = 1e-6
ABSOLUTE_J = 1.0
EMISSIONS_RELATIVE = 1e-4
# Series hold six digits and whole milliseconds; ledgers hold what was measured.
DIGITS_RELATIVE = 1e-5
ROUNDED_S = 1e-3

ByPhase = dict[tuple[str, str], float]


def energy_adds_up(run: Evidence) -> Finding:
    """Power series, phase events and the newest ledger agree, by site and phase."""
    problems = [*_tiling_problems(run), *_row_problems(run)]
    series = _series_j(run, None)
    problems += _differences("power.csv", series, "SitePhase events", _events_j(run), {})
    until = run.newest.t
    ledger = run.ledger
    committed = {name: tally.energy_j for name, tally in ledger.tallies.items()}
    problems += _differences(
        f"power.csv until version {run.newest.version}",
        _series_j(run, until),
        "its ledger",
        committed,
        _rounding_j(run),
    )
    total_kwh = sum(series.values()) / J_PER_KWH
    return judged(
        problems,
        f"{total_kwh:.3f} kWh by power series and by events; "
        f"{ledger.total().energy_j / J_PER_KWH:.3f} kWh by series and ledger at the last commit",
    )


def emissions_add_up(run: Evidence) -> Finding:
    """The newest ledger's emissions are power times readings, each held until the next."""
    problems = list(_intensity_problems(run))
    ledger = run.ledger
    again = Ledger(ledger.clean_below_g_per_kwh)
    for site, rows in run.power.items():
        for row in rows:
            for segment in _priced(row, run.readings.get(site, []), run.newest.t):
                again.add(segment)
    sites = sorted({site for site, _ in (*ledger.tallies, *again.tallies)})
    rounding_j = _rounding_j(run)
    for site in sites:
        slack_j = ABSOLUTE_J + sum(j for (name, _), j in rounding_j.items() if name == site)
        highest = max((r.value or 0.0 for r in run.readings.get(site, [])), default=0.0)
        told, found = ledger.total(site=site), again.total(site=site)
        slack = {"emissions_g": slack_j / J_PER_KWH * highest}
        for what in ("emissions_g", "clean_j", "unpriced_j", "solar_j", "battery_j", "stored_j"):
            left, right = getattr(told, what), getattr(found, what)
            absolute = slack.get(what, slack_j)
            if not agree(left, right, relative=EMISSIONS_RELATIVE, absolute=absolute):
                problems.append(
                    f"{site}: {what} {left:.6g} in the ledger of version {run.newest.version}, "
                    f"{right:.6g} from power and readings"
                )
    total: Tally = again.total()
    return judged(
        problems,
        f"{total.emissions_g / 1000.0:.3f} kg until the last commit, "
        f"{total.unpriced_j / J_PER_KWH:.3f} kWh of unknown intensity",
    )


def _tiling_problems(run: Evidence) -> Iterator[str]:
    """Where a site's power series has a gap or an overlap, or does not span the run's time."""
    firsts = {site: rows[0].segment.start for site, rows in run.power.items() if rows}
    lasts = {site: rows[-1].segment.end for site, rows in run.power.items() if rows}
    for site, rows in run.power.items():
        if site not in run.setup.sites:
            yield f"power.csv has a site {site} that resolved.json has not"
        for left, right in pairwise(rows):
            end, start = left.segment.end, right.segment.start
            if end != start:
                kind = "a gap" if start > end else "an overlap"
                yield f"power.csv of {site} has {kind} between {iso(end)} and {iso(start)}"
        if firsts and not rows:
            yield f"power.csv has no row of {site}"
        elif rows and rows[0].segment.start != min(firsts.values()):
            yield f"power.csv of {site} begins after the others, at {iso(firsts[site])}"
        elif rows and run.ended and rows[-1].segment.end != max(lasts.values()):
            yield f"power.csv of {site} ends before the others, at {iso(lasts[site])}"


def _row_problems(run: Evidence) -> Iterator[str]:
    """Rows and events whose watts are not the site's in that phase, and rows that run backwards."""
    sections = run.setup.sites
    for site, rows in run.power.items():
        for segment in (row.segment for row in rows):
            if segment.end <= segment.start:
                yield f"power.csv of {site} has an empty or negative row at {iso(segment.start)}"
            if site in sections:
                yield from _site_problems(run, sections[site], segment)
    for event in run.events:
        if not isinstance(event, SitePhase) or event.site not in sections:
            continue
        if event.power_w != sections[event.site].power_w(Phase(event.phase)):
            yield f"SitePhase of {event.site} at {iso(event.t)} has other watts than config"


def _site_problems(run: Evidence, site: SiteSection, segment: Segment) -> Iterator[str]:
    """What of a row is other than its site's config, or than what was measured."""
    where = f"power.csv of {segment.site} at {iso(segment.start)}"
    if (site.microgrid is None) != (segment.flow is None):
        what = "has a charge" if segment.flow is not None else "has no charge"
        yield f"{where} {what}: other than its config"
    if segment.power_from != MODEL:
        yield from _measured_problems(run, segment)
        return
    expected = site.power_w(Phase(segment.phase))
    if not agree(segment.power_w, expected, relative=DIGITS_RELATIVE, absolute=0.0):
        yield f"{where} has other watts than config"


def _measured_problems(run: Evidence, segment: Segment) -> Iterator[str]:
    """A stretch that claims to be measured has the watts of the sample that was in force."""
    found = _sampled(run, segment)
    where = f"power.csv of {segment.site} at {iso(segment.start)}"
    if found is None:
        yield f"{where} is said to be measured, and no sample in watts.csv was in force"
        return
    watts, source = found
    if source != segment.power_from:
        yield f"{where} was measured by {segment.power_from}, its sample by {source}"
    if not agree(segment.power_w, watts, relative=DIGITS_RELATIVE, absolute=0.0):
        yield f"{where} has {segment.power_w:g} W, its sample {watts:g} W"


def _sampled(run: Evidence, segment: Segment) -> tuple[float, str] | None:
    """What counted by the newest sample when a stretch began, and who took it."""
    sample = in_force(run.watts.get(segment.site, []), segment.start)
    if sample is None:
        return None
    beside_w = run.setup.sites[segment.site].power_beside_w
    stale_s = run.setup.power_stale_after_s
    up_since = _up_since(run, segment)
    watts = counted_w(sample, segment.start, stale_s, up_since, beside_w)
    return None if watts is None else (watts, sample.signal.source)


def _up_since(run: Evidence, segment: Segment) -> float:
    """When the site last left "released" before a stretch, by the power series."""
    rows = run.power[segment.site]
    index = bisect_right(rows, segment.start, key=lambda row: row.segment.start) - 1
    return run.up_since[segment.site][index] if index >= 0 else -math.inf


def _series_j(run: Evidence, until: float | None) -> ByPhase:
    """Joules that the feed drew, and the site's own, until a time or altogether."""
    total: ByPhase = defaultdict(float)
    for site, rows in run.power.items():
        for row in rows:
            segment = row.segment
            end = segment.end if until is None else min(segment.end, until)
            total[site, segment.phase] += _load_w(row) * max(0.0, end - segment.start)
    return total


def _load_w(row: PowerRow) -> float:
    """What the machines drew: from the grid, and from the site's own sun and battery."""
    flow = row.segment.flow
    if flow is None:
        return row.grid_power_w
    return row.grid_power_w - flow.grid_charge_w + flow.solar_w + flow.battery_w


def _events_j(run: Evidence) -> ByPhase:
    """Joules by the phase events alone, until each site's power series ends."""
    total: ByPhase = defaultdict(float)
    for site in run.setup.sites:
        rows = run.power[site]
        end = rows[-1].segment.end if rows else run.events[0].t
        phase, since = Phase.RELEASED, run.events[0].t
        for event in run.events:
            if isinstance(event, SitePhase) and event.site == site:
                total[site, phase] += _drawn_j(run, site, phase, (since, min(event.t, end)))
                phase, since = Phase(event.phase), min(event.t, end)
        total[site, phase] += _drawn_j(run, site, phase, (since, end))
    return total


def _drawn_j(run: Evidence, site: str, phase: Phase, stretch: tuple[float, float]) -> float:
    """Joules of a phase: as declared, but for the part that was measured, by its samples."""
    start, end = stretch
    declared_w = run.setup.sites[site].power_w(phase)
    total_j = declared_w * max(0.0, end - start)
    rows = run.measured[site]
    first = max(0, bisect_right(rows, start, key=lambda row: row.start) - 1)
    for row in rows[first:]:
        if row.start >= end:
            break
        overlap_s = min(end, row.end) - max(start, row.start)
        found = _sampled(run, row) if overlap_s > 0.0 else None
        if found is not None:
            total_j += (found[0] - declared_w) * overlap_s
    return total_j


def _rounding_j(run: Evidence) -> ByPhase:
    """What whole milliseconds may cost: one at each end of each stretch of a phase."""
    total: ByPhase = defaultdict(float)
    for site, rows in run.power.items():
        before = None
        for segment in (row.segment for row in rows):
            if segment.phase != before:
                total[site, segment.phase] += 2.0 * ROUNDED_S * segment.power_w
            before = segment.phase
    return total


def _differences(
    left_name: str, left: ByPhase, right_name: str, right: ByPhase, slack_j: ByPhase
) -> Iterator[str]:
    for site, phase in sorted({*left, *right}):
        one, other = left.get((site, phase), 0.0), right.get((site, phase), 0.0)
        absolute = ABSOLUTE_J + slack_j.get((site, phase), 0.0)
        if not agree(one, other, relative=RELATIVE, absolute=absolute):
            yield f"{site} {phase}: {one:.1f} J by {left_name}, {other:.1f} J by {right_name}"


def _intensity_problems(run: Evidence) -> Iterator[str]:
    """Rows of the power series that name another intensity than the reading in force."""
    for site, rows in run.power.items():
        readings = run.readings.get(site, [])
        for segment in (row.segment for row in rows):
            value = _value(readings, segment.start)
            told = segment.intensity_g_per_kwh
            if not agree(told, value, relative=DIGITS_RELATIVE, absolute=0.0):
                yield f"power.csv of {site} at {iso(segment.start)} says {told}, readings {value}"


def _priced(row: PowerRow, readings: Sequence[Reading], until: float) -> Iterator[Segment]:
    """A row until a time, cut at the readings, with the feed's watts and the value in force."""
    segment = row.segment
    end = min(segment.end, until)
    first = bisect_right(readings, segment.start, key=_time)
    last = bisect_left(readings, end, key=_time)
    edges = [segment.start, *(reading.t for reading in readings[first:last]), end]
    for start, stop in pairwise(edges):
        if stop > start:
            value = _value(readings, start)
            yield replace(
                segment,
                start=start,
                end=stop,
                power_w=_load_w(row),
                intensity_g_per_kwh=value,
            )


def _value(readings: Sequence[Reading], t: float) -> float | None:
    """The newest reading's value, however old; None where there is none or it was unknown."""
    reading = in_force(readings, t)
    return None if reading is None else reading.value


def _time(reading: Reading) -> float:
    return reading.t
