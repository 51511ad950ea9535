"""The commits prove themselves: each names its parent by hash, and its model by hash."""

import hashlib
import re
from pathlib import Path

from uncurtail.core.commit import Commit, key
from uncurtail.verify.evidence import Evidence, Finding, StoredCommit, judged

_OBJECT_KEY = re.compile(r"objects/([0-9a-f]{64})")


def commit_chain(run: Evidence) -> Finding:
    """Versions without a hole, each the child of the bytes before it, with all their tokens."""
    problems = []
    for version, stored in enumerate(run.commits):
        if f"commits/{stored.name}" != key(version):
            problems.append(f"commits/{stored.name} stands where {key(version)} should")
        if f"commits/{stored.name}" != key(stored.commit.version):
            problems.append(f"commits/{stored.name} says it is version {stored.commit.version}")
        parent = run.commits[version - 1] if version else None
        problems += [f"commits/{stored.name}: {what}" for what in _link(parent, stored.commit)]
    newest = run.newest
    return judged(problems, f"{len(run.commits)} commits, {newest.tokens} tokens")


def _link(parent: StoredCommit | None, child: Commit) -> list[str]:
    """What is wrong between a commit and its parent."""
    expected = None if parent is None else hashlib.sha256(parent.data).hexdigest()
    problems = []
    if child.parent_sha256 != expected:
        problems.append(f"its parent's hash is {child.parent_sha256}, on disk it is {expected}")
    before = 0 if parent is None else parent.commit.tokens
    tokens = before + sum(update.tokens for update in child.updates)
    if child.tokens != tokens:
        problems.append(f"{child.tokens} tokens, but parent and updates have {tokens}")
    if parent is None:
        return problems
    if child.run != parent.commit.run:
        problems.append(f"run {child.run}, its parent {parent.commit.run}")
    rising = (
        ("epoch falls", child.epoch >= parent.commit.epoch),
        ("round does not rise", child.round > parent.commit.round),
        ("time falls", child.t >= parent.commit.t and child.wall_s >= parent.commit.wall_s),
        ("event offset falls", child.event_offset >= parent.commit.event_offset),
    )
    return problems + [what for what, fine in rising if not fine]


def objects(run: Evidence) -> Finding:
    """Every object that commits name and that is here has its name's hash; the newest is here."""
    problems = []
    checked = gone = 0
    elsewhere = run.setup.raw.get("store", {}).get("url")
    for age, stored in enumerate(reversed(run.commits)):
        for name in (stored.commit.model, stored.commit.outer):
            if name is None:
                continue
            if run.exists(name):
                checked += 1
                problems += _hash_problem(run.folder.path, name)
            elif age == 0 and not elsewhere:
                problems.append(
                    f"{name} of the newest version {stored.commit.version} is missing: "
                    "restore it; without it a resume starts from an older version"
                )
            else:
                gone += 1
    if elsewhere and gone and not problems:
        return Finding(None, f"{checked} objects fine here, {gone} not: they are at {elsewhere}")
    return judged(problems, f"{checked} objects have their hash, {gone} older ones are deleted")


def _hash_problem(root: Path, name: str) -> list[str]:
    match = _OBJECT_KEY.fullmatch(name)
    if match is None:
        return [f"{name} is not named by its hash"]
    with (root / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [] if digest == match[1] else [f"{name} holds other bytes: their hash is {digest}"]
