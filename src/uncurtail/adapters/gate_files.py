"""What the gate keeps for a site: its record, line by line, and its last snapshot."""

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from uncurtail.adapters.gate_bodies import INDEX, RefusedError, shaped

INDEX_FILE = "snapshot.json"
STATE_FILE = re.compile(r"optimizer-[0-9a-f]{16}\.safetensors")


def append_once(path: Path, row: Mapping[str, Any]) -> None:
    """Append durably, unless this attempt is on record: its answer was lost on the way."""
    same = ("session", "round", "attempt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a call that was given up goes on beside its repetition
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        file.truncate(whole)  # a torn last line: a gate died there, and nobody heard of it
        known = (json.loads(line) for line in reversed(data[:whole].splitlines()))
        if any(all(row[key] == one[key] for key in same) for one in known):
            return
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def whole_snapshot(folder: Path) -> list[str]:
    """The names of a snapshot's files, if it is one: what its index names, and the index."""
    try:
        named = shaped((folder / INDEX_FILE).read_bytes(), INDEX).file
    except (FileNotFoundError, RefusedError):
        return []
    return [named, INDEX_FILE] if (folder / named).is_file() else []


def replace_index(folder: Path, body: bytes) -> None:
    """Put an index in force, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        try:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(folder / INDEX_FILE)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Delete the states of optimizers that are not among these."""
    for old in folder.glob("optimizer-*"):
        if old.name not in names:
            old.unlink(missing_ok=True)
