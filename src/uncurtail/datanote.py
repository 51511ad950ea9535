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
    note = folder / NOTE_FILE
    body = {"folder": str(data), "manifest_sha256": Manifest.load(data).sha256}
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        if before["manifest_sha256"] != body["manifest_sha256"]:
            raise ConfigError(
                f"{data} holds other data than {folder.name} began with in {before['folder']}: "
                "bring those files back, or leave out --resume and begin anew"
            )
    write_atomic(note, json.dumps(body))


def noted_data(folder: Path) -> Path:
    """The folder of data that was trained on.

    Raises:
        UserError: It was not noted, is not there any more, or holds other data now.
    """
    try:
        body = json.loads((folder / NOTE_FILE).read_text(encoding="utf-8"))
        data, wanted = Path(body["folder"]), str(body["manifest_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} names no data: --resume it, which writes {NOTE_FILE}") from None
    if Manifest.load(data).sha256 != wanted:
        raise UserError(
            f"{data} is not the data that {folder} was trained on: prepare it as it was then"
        )
    return data
