"""No site is left running: every session that was started was ended, once."""

from collections.abc import Iterable, Iterator

from uncurtail.core.events import Event, SitePhase, SiteProvisioned, SiteReleased
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
