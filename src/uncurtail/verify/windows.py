"""Training only on power known to be clean: the readings, judged again, against what ran.

Curtailed is the grid by its readings; clean, too, is what a site's own sun and battery give, while
they give all of it: then the grid may be dirty, or unknown.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from uncurtail.core.events import iso
from uncurtail.core.fleet import Phase
from uncurtail.core.ledger import Segment
from uncurtail.core.measured import MODEL
from uncurtail.core.policy import (
    Always,
    Deadline,
    PolicySection,
    at_site,
    stale_at,
    uncapped,
    window,
)
from uncurtail.core.signals import Reading, in_force, usable
from uncurtail.verify.evidence import Evidence, Finding, judged

Stretch = tuple[float, float]
# A share of the load this small is what a row that is cut at whole milliseconds may leave over.
NOTHING_SHARE = 1e-3
TRAINS = (Phase.TRAINING, Phase.CAPPED)


def only_in_windows(run: Evidence) -> Finding:
    """Every stretch of training lies in a window; a step outside belongs to a draining site.

    At full power only in a window that is not dim, and until the step is done that was under way
    when it dimmed. A policy that caps lingers capped.
    """
    policy, late_s = run.setup.policy, run.tolerance_s
    if isinstance(policy, Deadline):
        return Finding(None, 'policy.kind is "deadline": its plan may train outside of windows')
    found = {site: windows(_at(run, site), rows) for site, rows in run.readings.items()}
    lingers_s = getattr(policy, "linger_s", 0.0)
    open_ = {site: _widened(found[site], late_s + lingers_s) for site in found}
    full = {site: _full(run, site, found[site], open_[site]) for site in found}
    capped = {
        site: _widened([*open_[site], *_carried(run, site, (Phase.CAPPED,))], 0.0) for site in found
    }
    problems = [
        f"{site} {verb} outside its windows {iso(start)} - {iso(end)}"
        for phase, verb, where in (
            (Phase.TRAINING, "trains", full),
            (Phase.CAPPED, "trains capped", capped),
        )
        for site, start, end in _outside(run, phase, where)
    ]
    # Its first steps are taken before a tick has seen that the site trains.
    alone = {site: _carried(run, site, (Phase.IDLE, *TRAINS)) for site in found}
    draining = {site: _widened(_stretches(run, site, Phase.DRAINING), late_s) for site in run.power}
    for t, step in run.steps:
        allowed = (open_, full, alone, draining)
        if not any(_covers(where.get(step.site, []), t, t) for where in allowed):
            problems.append(f"{step.site} took step {step.step} outside its windows at {iso(t)}")
    return judged(
        problems,
        f"{sum(map(len, found.values()))} windows, {len(run.steps)} steps; tolerance {late_s:g} s",
    )


def known_power(run: Evidence) -> Finding:
    """No stretch of training while nobody knew how clean the power was."""
    policy = run.setup.policy
    if isinstance(policy, Always):
        return Finding(None, 'policy.kind is "always": this baseline trains on any power')
    late_s = run.tolerance_s
    known = {
        site: _widened(
            _until_done(run, site, [*_known(policy, rows), *_alone(run, site, TRAINS)], []), late_s
        )
        for site, rows in run.readings.items()
    }
    problems = [
        f"{site} trains on unknown power {iso(start)} - {iso(end)}"
        for phase in TRAINS
        for site, start, end in _outside(run, phase, known)
    ]
    unknown = sum(reading.value is None for rows in run.readings.values() for reading in rows)
    count = sum(map(len, run.readings.values()))
    return judged(problems, f"{count} readings, {unknown} of them unknown, none trained on")


def windows(policy: PolicySection, readings: Sequence[Reading]) -> list[Stretch]:
    """A site's windows by its readings: hysteresis at each, and closed when one goes stale."""
    if isinstance(policy, Always):
        return [(-math.inf, math.inf)]
    found: list[Stretch] = []
    opened: float | None = None
    for reading, until in _held(readings):
        is_open = window(policy, reading, was_open=opened is not None, now=reading.t)
        if opened is not None and not is_open:
            found.append((opened, reading.t))
            opened = None
        elif is_open and opened is None:
            opened = reading.t
        stale = stale_at(policy, reading)
        if opened is not None and stale < until:
            found.append((opened, stale))
            opened = None
    return found


def _at(run: Evidence, site: str) -> PolicySection:
    """The policy as it holds for a site."""
    section = run.setup.sites.get(site)
    return run.setup.policy if section is None else at_site(run.setup.policy, section.costs())


def _full(
    run: Evidence, site: str, found: Sequence[Stretch], open_: Sequence[Stretch]
) -> list[Stretch]:
    """Where a site may train at full power: on its own, or in a window that is not dim."""
    if _at(run, site).cap_below_g_per_kwh is None:
        return _widened([*open_, *_carried(run, site, (Phase.TRAINING,))], 0.0)
    clean = windows(uncapped(run.setup.policy), run.readings[site])
    full = [*clean, *_alone(run, site, (Phase.TRAINING,))]
    return _widened(_until_done(run, site, full, found), run.tolerance_s)


def _until_done(
    run: Evidence, site: str, stretches: Iterable[Stretch], dim: Iterable[Stretch]
) -> list[Stretch]:
    """Each until the step under way is done, where the site then goes on, capped or not.

    That is so while it is in a `dim` stretch, or soon trains on its own power alone.
    """
    merged, dim = _widened(stretches, 0.0), list(dim)
    if _at(run, site).cap_below_g_per_kwh is None:
        return merged
    times = sorted(t for t, step in run.steps if step.site == site)
    alone = _alone(run, site, TRAINS)
    longer: list[Stretch] = []
    for start, end in merged:
        index = bisect_left(times, end)
        done = times[index] if index < len(times) else end
        soon = any(row[0] <= done + run.tolerance_s and done <= row[1] for row in alone)
        longer.append((start, done if soon or _covers(dim, end, done) else end))
    return longer


def _known(policy: PolicySection, readings: Sequence[Reading]) -> list[Stretch]:
    return [
        (reading.t, min(until, stale_at(policy, reading)))
        for reading, until in _held(readings)
        if usable(reading, reading.t, policy.stale_after_s) is not None
    ]


def _carried(run: Evidence, site: str, phases: tuple[Phase, ...]) -> list[Stretch]:
    """As `_alone`, and as long as a tick may be late."""
    return _widened(_alone(run, site, phases), run.tolerance_s)


def _alone(run: Evidence, site: str, phases: tuple[Phase, ...]) -> list[Stretch]:
    """When a site drew nothing from its grid in these phases.

    Watts that were measured before a phase began count in it, but say nothing of it.
    """
    found: list[Stretch] = []
    phase, since = "", -math.inf
    for row in (row.segment for row in run.power.get(site, [])):
        if row.phase != phase:
            phase, since = row.phase, row.start
        if row.phase not in phases or row.flow is None:
            continue
        carried = row.flow.grid_w <= NOTHING_SHARE * row.power_w
        if carried or (row.power_from != MODEL and _measured_at(run, row) < since):
            found.append((row.start, row.end))
    return found


def _measured_at(run: Evidence, row: Segment) -> float:
    """When the watts of a measured row were measured."""
    sample = in_force(run.watts.get(row.site, []), row.start)
    return math.inf if sample is None else sample.as_of


def _held(readings: Sequence[Reading]) -> Iterator[tuple[Reading, float]]:
    """Each reading with the time of the next."""
    ends = [*(reading.t for reading in readings[1:]), math.inf]
    yield from zip(readings, ends, strict=False)


def _stretches(run: Evidence, site: str, phase: Phase) -> list[Stretch]:
    """When a site was in a phase, by the power series."""
    rows = (row.segment for row in run.power.get(site, []))
    return [(segment.start, segment.end) for segment in rows if segment.phase == phase]


def _outside(
    run: Evidence, phase: Phase, allowed: Mapping[str, Sequence[Stretch]]
) -> Iterator[tuple[str, float, float]]:
    """The site's rows of power in this phase that no allowed stretch covers."""
    for site in run.power:
        for start, end in _stretches(run, site, phase):
            if not _covers(allowed.get(site, []), start, end):
                yield site, start, end


def _widened(stretches: Iterable[Stretch], late_s: float) -> list[Stretch]:
    """The stretches, rising, each ending so much later; those that then touch are one."""
    merged: list[Stretch] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end + late_s))
        else:
            merged.append((start, end + late_s))
    return merged


def _covers(stretches: Sequence[Stretch], start: float, end: float) -> bool:
    index = bisect_right(stretches, start, key=lambda stretch: stretch[0]) - 1
    return index >= 0 and end <= stretches[index][1]
