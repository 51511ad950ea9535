"""A site's optimizer state on disk: whole or ignored, and never a pickle.

Two files: `optimizer-HASH.safetensors`, and `snapshot.json` which names it and is replaced
atomically, last. A crash in between leaves the older snapshot in force.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

INDEX_FILE = "snapshot.json"


def write_snapshot(folder: Path, state: Mapping[str, Tensor], kind: str) -> None:
    """Replace the folder's snapshot; `kind` names the model and optimizer it fits."""
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save({name: t.detach().cpu() for name, t in state.items()})
    digest = hashlib.sha256(content).hexdigest()
    name = f"optimizer-{digest[:16]}.safetensors"
    _replace(folder / name, content)
    index = {"file": name, "sha256": digest, "kind": kind}
    _replace(folder / INDEX_FILE, json.dumps(index).encode())
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


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
