"""Which data a model was trained on: `data.json`, in the folder of a run or of a baseline."""

import json
from pathlib import Path

from uncurtail.config import ConfigError
from uncurtail.errors import UserError
from uncurtail.lm.manifest import Manifest
from uncurtail.runfolder import write_atomic

NOTE_FILE = "data.json"


def note_data(folder: Path, data: Path) -> None:
    """Write down what is trained on; where something was before, it must be the same tokens.

    Raises:
        ConfigError: They are others.
    """
    sha256, before = Manifest.load(data).sha256, _noted(folder)
    if before is not None and before[1] != sha256:
        raise ConfigError(
            f"{data} holds other data than {folder.name} began with in {before[0]}: "
            "bring those files back, or leave out --resume and begin anew"
        )
    body = {"folder": str(data), "manifest_sha256": sha256}
    write_atomic(folder / NOTE_FILE, json.dumps(body))


def noted_data(folder: Path) -> Path:
    """The folder of data that was trained on.

    Raises:
        UserError: It was not noted, is not there any more, or holds other data now.
    """
    noted = _noted(folder)
    if noted is None:
        raise UserError(f"{folder} names no data: --resume it, which writes {NOTE_FILE}")
    data, sha256 = noted
    if Manifest.load(data).sha256 != sha256:
        raise UserError(
            f"{data} is not the data that {folder} was trained on: prepare it as it was then"
        )
    return data


def _noted(folder: Path) -> tuple[Path, str] | None:
    """Where the data was, and the hash of its manifest; None if nobody can tell."""
    try:
        body = json.loads((folder / NOTE_FILE).read_text(encoding="utf-8"))
        return Path(body["folder"]), str(body["manifest_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
