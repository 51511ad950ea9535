"""Every training step counts once: the coordinator's leases against the sites' own records."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from uncurtail.core.commit import Accepted
from uncurtail.core.leases import Interval, count_steps, split
from uncurtail.verify.evidence import Consumed, Evidence, Finding, judged

if TYPE_CHECKING:
    from uncurtail.lm.data import Corpus


def steps_once(run: Evidence) -> Finding:
    """No step is in two accepted updates, and none of an opened epoch is lost."""
    problems: list[str] = []
    consumed: list[Interval] = []
    count = 0
    size = run.newest.free.steps_per_epoch
    for stored in run.commits:
        commit = stored.commit
        for update in commit.updates:
            if count_steps(update.intervals) < update.steps:
                where = f"commits/{stored.name}: {update.site}"
                problems.append(f"{where} consumed {update.steps} steps of {update.intervals}")
            else:
                consumed += split(update.intervals, update.steps)[0]
                count += update.steps
        opened = commit.free.next_epoch * size
        accounted = count + count_steps(commit.free.intervals)
        if commit.free.steps_per_epoch != size:
            problems.append(f"commits/{stored.name}: another size of an epoch")
        elif accounted != opened:
            problems.append(
                f"commits/{stored.name}: {accounted} steps consumed or free, {opened} opened"
            )
    free = run.newest.free
    problems += _tiling_problems(
        [*((i, "consumed") for i in consumed), *((i, "free") for i in free.intervals)],
        size,
        free.next_epoch,
    )
    counted = f"{count} steps consumed once, {count_steps(free.intervals)} free"
    return judged(problems, f"{counted}, in {free.next_epoch} opened epochs of {size}")


def _tiling_problems(
    pieces: Iterable[tuple[Interval, str]], size: int, epochs: int
) -> Iterator[str]:
    """Where the pieces overlap, leave a gap, or leave [0, size) of the opened epochs."""
    edges: dict[int, int] = {}
    for (epoch, start, stop), kind in sorted(pieces):
        if not (0 <= epoch < epochs and 0 <= start < stop <= size):
            yield f"steps {start}..{stop} of epoch {epoch} ({kind}) are outside what was opened"
            continue
        edge = edges.get(epoch, 0)
        if start < edge:
            yield f"steps {start}..{min(edge, stop)} of epoch {epoch} count twice ({kind} again)"
        elif start > edge:
            yield f"steps {edge}..{start} of epoch {epoch} are lost"
        edges[epoch] = max(edge, stop)
    for epoch, edge in sorted(edges.items()):
        if edge < size:
            yield f"steps {edge}..{size} of epoch {epoch} are lost"
    if len(edges) < epochs:
        yield f"{epochs - len(edges)} opened epochs are lost whole"


def consumed_matches(run: Evidence) -> Finding:
    """Every accepted update has exactly one line in its site's own record, word for word."""
    problems: list[str] = []
    accepted = _accepted_lines(run)
    lines = 0
    lost: Counter[Consumed] = Counter()
    for site in sorted({*accepted, *run.setup.sites}):
        expected = accepted.get(site, [])
        name = f"sites/{site}/consumed.jsonl"
        if not expected and not run.exists(name):
            continue  # it never trained
        own = run.consumed(site)
        lines += len(own)
        count = Counter(own)
        wanted = Counter(expected)
        problems += [
            f"{name} has {count[line]} lines for {times} accepted updates {line}"
            for line, times in wanted.items()
            if (count[line], times) != (1, 1)
        ]
        lost += count - wanted
    lost_steps = sum(line.steps * times for line, times in lost.items())
    matched = sum(map(len, accepted.values()))
    return judged(
        problems,
        f"{matched} updates are among {lines} lines; "
        f"{lost.total()} lines ({lost_steps} steps) are lost work",
    )


def _accepted_lines(run: Evidence) -> dict[str, list[Consumed]]:
    """What each site must have written for its accepted updates."""
    found: dict[str, list[Consumed]] = {}
    for stored in run.commits:
        for update in stored.commit.updates:
            found.setdefault(update.site, []).append(_as_line(stored.commit.round, update))
    return found


def _as_line(round_number: int, update: Accepted) -> Consumed:
    return Consumed(
        session=update.session,
        round=round_number,
        intervals=update.intervals,
        steps=update.steps,
        tokens=update.tokens,
        token_sha256=update.token_sha256,
    )


def token_hashes(run: Evidence) -> Finding:
    """The tokens of the accepted steps, read from the corpus again, have the updates' hashes."""
    if not run.recompute_tokens:
        return Finding(None, "not asked for")
    if not run.exists("data.json"):
        return Finding(None, "data.json is missing: which data the run read is not recorded")
    corpus = _corpus(run)
    if isinstance(corpus, str):
        return Finding(None, corpus)
    setup = run.setup.raw
    shape = (int(setup["model"]["sequence_length"]), int(setup["train"]["batch_sequences"]))
    size, leased = corpus.steps_per_epoch(*shape), run.newest.free.steps_per_epoch
    if size != leased:
        return Finding(False, f"{corpus.folder} has {size} steps an epoch, the run {leased}")
    updates = [(s.commit.version, u) for s in run.commits for u in s.commit.updates]
    # by epoch: the corpus keeps one epoch's order at a time
    updates.sort(key=lambda item: item[1].intervals)
    problems = [
        f"version {version}: {update.site} hashed other tokens than steps {update.intervals} hold"
        for version, update in updates
        if _prefix_sha256(corpus, update, shape) != update.token_sha256
    ]
    return judged(problems, f"the tokens of {len(updates)} updates are those of {corpus.folder}")


def _corpus(run: Evidence) -> "Corpus | str":
    """The data that the run read, or why it is not here."""
    data = run.read_json("data.json")
    folder, sha256 = Path(str(data["folder"])), data["manifest_sha256"]
    if not (folder / "manifest.json").is_file():
        return f"{folder} holds no data: prepare it, or verify where the run was"
    try:
        from uncurtail.lm.data import Corpus
    except ModuleNotFoundError as error:
        return f"{error}: install it to hash tokens"
    try:
        corpus = Corpus.open(folder)
    except ValueError as error:
        return str(error)
    if corpus.manifest.sha256 != sha256:
        return f"{folder} holds other data than the run read: prepare it anew"
    return corpus


def _prefix_sha256(corpus: "Corpus", update: Accepted, shape: tuple[int, int]) -> str | None:
    """The hash of the steps an update consumed; None if the corpus has no such steps."""
    hasher = hashlib.sha256()
    try:
        for epoch, start, stop in split(update.intervals, update.steps)[0]:
            for step in range(start, stop):
                corpus.hash_step(hasher, epoch, step, *shape)
    except (IndexError, ValueError):
        return None
    return hasher.hexdigest()
