"""A site's optimizer state on disk: whole or ignored, and never a pickle.

Two files: `optimizer-HASH.safetensors`, and `snapshot.json` which names it and is replaced
atomically, last. A crash in between leaves the older snapshot in force.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

INDEX_FILE = "snapshot.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of an optimizer's state, on the CPU; `kind` names the model and optimizer it fits."""

    state: Mapping[str, Tensor]
    kind: str


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Replace the folder's snapshot.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old snapshot stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary(folder / "optimizer") as temporary:
        try:
            # Not `save`, which holds Python's lock for all of it: 2.5 s for 0.8 GB, in which no
            # step begins and no heartbeat leaves.
            safetensors.torch.save_file(dict(snapshot.state), temporary)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        with temporary.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        name = f"optimizer-{digest[:16]}.safetensors"
        temporary.replace(folder / name)
    index = {"file": name, "sha256": digest, "kind": snapshot.kind}
    with _temporary(folder / INDEX_FILE) as temporary:
        with temporary.open("wb") as file:
            file.write(json.dumps(index).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / INDEX_FILE)
    for old in folder.glob("optimizer-*"):
        if old.name != name:
            old.unlink()


def read_snapshot(folder: Path, kind: str) -> dict[str, Tensor] | str:
    """The folder's state, or in words why there is none; bad files never raise."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if index["kind"] != kind:
            return "the snapshot is of another model or optimizer"
        content = (folder / Path(index["file"]).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != index["sha256"]:
            return "the snapshot is torn: its SHA-256 differs"
        return safetensors.torch.load(content)
    except FileNotFoundError:
        return "there is no snapshot"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"the snapshot cannot be read: {error!r}"


def discard_unfinished(folder: Path) -> None:
    """Delete what a writer that was killed left behind; only while none writes."""
    for pattern in ("*.tmp", ".tmp*"):  # ours, and safetensors' own while it writes one
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file to write and to rename; gone if that fails."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
