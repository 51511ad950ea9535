"""The record itself: the event log is whole, agrees with the commits, and secrets stay ours."""

import hashlib
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from uncurtail.core.events import (
    CoordinatorStarted,
    Event,
    RoundCommitted,
    RunEnded,
    UpdateAccepted,
    iso,
)
from uncurtail.verify.evidence import Evidence, Finding, StoredCommit, judged

PRIVATE_MODE = 0o700


def events_readable(run: Evidence) -> Finding:
    """Events are in order and say of each commit what the commit says."""
    events, commits = run.events, run.commits
    said = {event.version: event for event in events if isinstance(event, RoundCommitted)}
    # A coordinator that died between a commit and its event: the next one starts from it.
    resumed = {event.version for event in events[1:] if isinstance(event, CoordinatorStarted)}
    unsaid = [stored.commit.version for stored in commits[1:] if stored.commit.version not in said]
    problems = [*_order_problems(events), *_start_problems(events, commits)]
    problems += _end_problems(events, run.newest.version)
    problems += _commit_problems(events, commits)
    problems += _update_problems(events, commits)
    problems += _offset_problems(run)
    problems += [
        f"no RoundCommitted says version {version}"
        for version in unsaid
        if version not in resumed and (run.ended or version != run.newest.version)
    ]
    state = "ended" if run.ended else "not ended"
    unheard = f"; versions {unsaid} were durable but not announced" if unsaid else ""
    return judged(
        problems, f"{len(events)} events, {len(said)} commits announced; {state}{unheard}"
    )


def _order_problems(events: Sequence[Event]) -> Iterator[str]:
    """Where time falls, by either clock; each coordinator has a wall clock of its own."""
    for before, event in pairwise(events):
        new = isinstance(event, CoordinatorStarted)
        if not (event.t >= before.t and (new or event.wall_s >= before.wall_s)):
            yield f"time falls before {type(event).__name__} at {iso(event.t)}"


def _start_problems(events: Sequence[Event], commits: Sequence[StoredCommit]) -> Iterator[str]:
    """Coordinators that start in no order, of another run, or from tokens nobody committed."""
    if not isinstance(events[0], CoordinatorStarted):
        yield f"the first event is {type(events[0]).__name__}, not CoordinatorStarted"
    tokens = {stored.commit.version: stored.commit.tokens for stored in commits}
    epoch = None
    for event in events:
        if isinstance(event, CoordinatorStarted):
            if event.run != commits[0].commit.run:
                yield f"a coordinator of run {event.run} started at {iso(event.t)}"
            if epoch is not None and event.epoch <= epoch:
                yield f"coordinator epoch {event.epoch} follows {epoch}"
            epoch = event.epoch
        if not isinstance(event, CoordinatorStarted | RunEnded):
            continue
        if tokens.get(event.version) != event.tokens:
            name = type(event).__name__
            yield f"{name} has {event.tokens} tokens at version {event.version}, the commit not"


def _end_problems(events: Sequence[Event], newest: int) -> Iterator[str]:
    """A run that ended at another version than its newest, or went on without a coordinator."""
    last = events[-1]
    if isinstance(last, RunEnded) and last.version != newest:
        yield f"the run ended at version {last.version}, the newest is {newest}"
    for before, event in pairwise(events):
        if isinstance(before, RunEnded) and not isinstance(event, CoordinatorStarted):
            yield f"{type(event).__name__} follows RunEnded"


def _commit_problems(events: Sequence[Event], commits: Sequence[StoredCommit]) -> Iterator[str]:
    """What RoundCommitted events say otherwise than the commits, or say twice.

    A coordinator that finds its newest commit damaged sets it aside, and starts from one before:
    what was said of those behind that is void.
    """
    by_version = {stored.commit.version: stored for stored in commits}
    last = 0
    for event in _standing(events):
        if event.version <= last:
            yield f"RoundCommitted of version {event.version} follows version {last}"
        last = event.version
        stored = by_version.get(event.version)
        if stored is None:
            yield f"RoundCommitted of version {event.version}, which is not in commits/"
            continue
        commit = stored.commit
        told = (event.round, event.tokens, event.sites, event.sha256)
        sites = sorted({update.site for update in commit.updates})
        true = (commit.round, commit.tokens, sites, hashlib.sha256(stored.data).hexdigest())
        if told != true:
            yield f"RoundCommitted of version {event.version} says {told}, the commit {true}"


def _standing(events: Sequence[Event]) -> list[RoundCommitted]:
    """The commits announced, without those that a later coordinator set aside."""
    found: list[RoundCommitted] = []
    for event in events:
        if isinstance(event, RoundCommitted):
            found.append(event)
        elif isinstance(event, CoordinatorStarted):
            found = [earlier for earlier in found if earlier.version <= event.version]
    return found


def _update_problems(events: Sequence[Event], commits: Sequence[StoredCommit]) -> Iterator[str]:
    """Updates of commits that no UpdateAccepted announced word for word."""
    said = Counter(
        (e.round, e.site, e.session, e.steps, e.tokens, e.sha256)
        for e in events
        if isinstance(e, UpdateAccepted)
    )
    for stored in commits:
        for u in stored.commit.updates:
            row = (stored.commit.round, u.site, u.session, u.steps, u.tokens, u.update_sha256)
            if said[row] != 1:
                yield f"{said[row]} UpdateAccepted for {row} of commits/{stored.name}"


def _offset_problems(run: Evidence) -> Iterator[str]:
    """Commits whose place in the event log is not the end of a line: something was cut or added."""
    log = run.folder.events_file.read_bytes()
    for stored in run.commits:
        offset = stored.commit.event_offset
        if not (0 <= offset <= len(log) and (offset == 0 or log[offset - 1 : offset] == b"\n")):
            yield f"no line of events.jsonl ends at byte {offset}, as commits/{stored.name} saw"
            return


def nothing_public(run: Evidence) -> Finding:
    """The folder with keys is for its owner alone, and so is each file in it."""
    private = run.folder.private
    if not private.is_dir():
        return Finding(None, "private/ is not here, so nothing in it is public")
    problems = []
    mode = stat.S_IMODE(private.stat().st_mode)
    if mode != PRIVATE_MODE:
        problems.append(f"private/ has mode {mode:04o}: chmod 700 {private}")
    count = 0
    for path in sorted(private.rglob("*")):
        if path.is_symlink() or path.is_dir():
            continue
        count += 1
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            problems.append(f"others may read {path.relative_to(run.folder.path)}: chmod 600 it")
    return judged(problems, f"private/ is 0700; {count} files in it, none readable by others")
