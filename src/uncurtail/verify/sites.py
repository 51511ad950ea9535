"""No site is left running: every session that was started was ended, once."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from uncurtail.core.events import Event, SitePhase, SiteProvisioned, SiteReleased, iso
from uncurtail.core.fleet import Phase
from uncurtail.verify.evidence import Evidence, Finding, judged


def provision_release(run: Evidence) -> Finding:
    """Each session is provisioned, then released, once; one at a time, numbered upwards."""
    still_open: dict[str, int] = {}
    problems = list(_session_problems(run.events, still_open))
    sessions = sum(isinstance(event, SiteProvisioned) for event in run.events)
    names = ", ".join(f"{site}.{session}" for site, session in sorted(still_open.items()))
    if run.ended and names:
        problems.append(f"the run ended and did not release {names}")
    if names and not problems:
        return Finding(None, f"{sessions} sessions; the run has not ended, still up: {names}")
    return judged(problems, f"{sessions} sessions, each released once")


def no_more_than_may_be(run: Evidence) -> Finding:
    """Never were more sites up than `fleet.max_sites`, by events and by the power series."""
    max_sites = run.setup.raw.get("fleet", {}).get("max_sites")
    if max_sites is None:
        return Finding(None, "fleet.max_sites is not set: all sites may be up")
    sessions = _crowds(_sessions(run.events))
    stretches = _crowds(
        (row.segment.start, row.segment.end)
        for rows in run.power.values()
        for row in rows
        if row.segment.phase != Phase.RELEASED
    )
    problems = [
        f"{count} sites are up at {iso(t)} by {where}, and fleet.max_sites is {max_sites}"
        for where, crowds in (("events.jsonl", sessions), ("power.csv", stretches))
        for t, count in crowds
        if count > max_sites
    ]
    most = max((count for _, count in sessions), default=0)
    return judged(problems, f"at most {most} sites at once, and {max_sites} may be")


def _sessions(events: Iterable[Event]) -> Iterator[tuple[float, float]]:
    """When each session began and ended; one that did not ends with the log."""
    began: dict[tuple[str, int], float] = {}
    last = 0.0
    for event in events:
        last = max(last, event.t)
        match event:
            case SiteProvisioned(site=site, session=session):
                began[site, session] = event.t
            case SiteReleased(site=site, session=session) if (site, session) in began:
                yield began.pop((site, session)), event.t
            case _:
                pass
    yield from ((t, last) for t in began.values())


def _crowds(stretches: Iterable[tuple[float, float]]) -> list[tuple[float, int]]:
    """How many stretches overlap from each time on; one that ends makes room at that time."""
    changes: Counter[float] = Counter()
    for start, end in stretches:
        changes[start] += 1
        changes[end] -= 1
    times = sorted(changes)
    return list(zip(times, accumulate(changes[t] for t in times), strict=True))


def _session_problems(events: Iterable[Event], still_open: dict[str, int]) -> Iterator[str]:
    """What is out of order; leaves in `still_open` the sessions that were not released."""
    last: dict[str, int] = {}
    phases: dict[str, str] = {}
    for event in events:
        match event:
            case SiteProvisioned(site=site, session=session):
                if site in still_open:
                    yield f"{site}.{session} is provisioned while {still_open[site]} is up"
                if session <= last.get(site, 0):
                    yield f"{site}.{session} is provisioned after {last[site]}"
                still_open[site] = last[site] = session
            case SiteReleased(site=site, session=session):
                if still_open.get(site) != session:
                    yield f"{site}.{session} is released, but is not up"
                    continue
                del still_open[site]
                if phases.get(site) != Phase.RELEASED:
                    yield f"{site}.{session} is released, but its phase is {phases.get(site)}"
            case SitePhase(site=site, session=session, phase=phase):
                phases[site] = phase
                if phase != Phase.RELEASED and still_open.get(site) != session:
                    yield f"{site}.{session} is {phase}, but is not up"
            case _:
                pass
