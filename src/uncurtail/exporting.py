"""A trained model out of a run folder, for other tools or as text; the run is only read."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from uncurtail import wiring
from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.config import Config
from uncurtail.core.commit import Commit
from uncurtail.errors import UserError
from uncurtail.lm.checkpoint import decode_weights
from uncurtail.lm.export import Trained, mismatch, write_hf, write_nanochat
from uncurtail.lm.manifest import TOKENIZER_FILE, Manifest
from uncurtail.lm.prepare import default_folder
from uncurtail.lm.sample import continue_text, open_model
from uncurtail.lm.tokenizer import Tokenizer
from uncurtail.runfolder import RunFolder

Format = Literal["hf", "nanochat"]
HASH = re.compile(r"[0-9a-f]{64}")


WEIGHTS_FILE, PROGRESS_FILE = "weights.safetensors", "progress.json"  # of a baseline


@dataclass(frozen=True, slots=True)
class Source:
    """What a user points at: a run (then its newest model), a baseline, or one model of either."""

    path: Path
    run: Path | None = None

    def folder(self) -> RunFolder:
        """The run folder that says what the model is.

        Raises:
            UserError: There is none.
        """
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist: name a run folder or a checkpoint file")
        if self.path.is_dir():
            path, remedy = self.path, "name one below runs/, or a checkpoint file"
        elif self.run is not None:
            path, remedy = self.run, "--run names the run that the checkpoint is of"
        else:
            above = self.path.resolve().parents
            path = next((p for p in above if RunFolder(p).resolved.is_file()), above[0])
            remedy = f"say with --run which run {self.path} is of: it knows the vocabulary"
        folder = RunFolder(path)
        if not folder.resolved.is_file():
            raise UserError(f"{path} is no run folder: {remedy}")
        return folder

    def file(self) -> Path | None:
        """The file with the weights; None for a run, where commits name it."""
        if not self.path.is_dir():
            return self.path
        weights = self.path / WEIGHTS_FILE
        return weights if weights.is_file() else None


def export_model(source: Source, format_: Format, out: Path | None) -> str:
    """Write a model in another tool's form; what to print.

    Raises:
        UserError: There is no such model, or it has no such form, or the folder is in use.
    """
    trained = open_trained(source)
    out = out or source.folder().path / "export" / f"{format_}-{trained.step:06d}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: remove it, or name another folder with --out")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if format_ == "hf":
            write_hf(trained, unfinished)
        else:
            write_nanochat(trained, unfinished)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}: make room, or use --out") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return f"{out}\nNext: {_next(format_, out)}"


def sample_text(source: Source, prompt: str, tokens: int, *, temperature: float, seed: int) -> str:
    """The prompt, continued by a model.

    Raises:
        UserError: There is no such model.
    """
    trained = open_trained(source)
    model = open_model(trained.section, trained.weights)
    return continue_text(
        model, trained.tokenizer, prompt, tokens, temperature=temperature, seed=seed
    )


def open_trained(source: Source) -> Trained:
    """The model that a run folder's newest usable commit names, or that a file holds.

    Raises:
        UserError: One of the many things that can be missing, each with its remedy.
    """
    folder = source.folder()
    config = wiring.read_config(folder)
    blobs = wiring.store(config, folder)
    file = source.file()
    commit: Commit | None
    if file is None:
        content, commit = _newest(folder, blobs)
    else:
        content = _read(file)
        commit = _commit_of(file, content, blobs)
    try:
        weights = decode_weights(content)
    except ValueError as error:
        raise UserError(f"{source.path} holds no model of ours: {error}") from None
    odd = mismatch(config.model, weights)
    if odd is not None:
        raise UserError(
            f"{source.path} is of another architecture than {folder.path} trains: {odd}"
        )
    tokens = 0 if commit is None else commit.tokens
    step = tokens // (config.train.batch_sequences * config.model.sequence_length)
    return Trained(
        section=config.model,
        weights=weights,
        tokenizer=_tokenizer(config, folder),
        step=_steps_of_baseline(folder) if commit is None else step,
        note={"trained_by": "uncurtail", "run": folder.run_id, "tokens": tokens or None},
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _newest(folder: RunFolder, blobs: ObjectStore) -> tuple[bytes, Commit]:
    """The newest whole model; unlike `wiring.newest_commit`, moves nothing: a run may go on."""
    for commit in _commits(blobs):
        try:
            return blobs.get(commit.model), commit
        except BlobError:
            continue
    raise UserError(
        f"{folder.path} has no usable commit: wait for its first round, or see "
        f"`uncurtail verify {folder.path}`"
    )


def _commits(blobs: ObjectStore) -> Iterator[Commit]:
    """Every commit that can be read, newest first."""
    try:
        names = blobs.keys("commits")
    except BlobError as error:
        raise UserError(f"{error}: is store.url reachable from here?") from None
    for name in reversed(names):
        try:
            yield Commit.decode(blobs.get(name))
        except (BlobError, ValueError):
            continue


def _commit_of(path: Path, content: bytes, blobs: ObjectStore) -> Commit | None:
    """The newest commit that names this model; None for a file that no commit names."""
    digest = hashlib.sha256(content).hexdigest()
    if HASH.fullmatch(path.name) and path.name != digest:
        raise UserError(f"{path} is damaged: its hash is another; use another commit's model")
    for commit in _commits(blobs):
        if commit.model == f"objects/{digest}":
            return commit
        if commit.outer == f"objects/{digest}":
            raise UserError(
                f"{path} is the outer optimizer's momentum of version {commit.version}: its model "
                f"is {commit.model}"
            )
    return None


def _steps_of_baseline(folder: RunFolder) -> int:
    """How far a baseline has come; 0 if this is none."""
    try:
        return int(json.loads((folder.path / PROGRESS_FILE).read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _tokenizer(config: Config, folder: RunFolder) -> Tokenizer:
    note = folder.path / "data.json"
    try:
        if note.is_file():
            body = json.loads(note.read_text(encoding="utf-8"))
            data, wanted = Path(body["folder"]), body["manifest_sha256"]
        else:
            data, wanted = default_folder(config.data, config.model), None
        found = Manifest.load(data).sha256
        tokenizer = Tokenizer.load(data / TOKENIZER_FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the vocabulary of {folder.path} cannot be read: {error}") from None
    if wanted not in (None, found) or tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{data} is not the data that {folder.path} was trained on: prepare it as it was then"
        )
    return tokenizer


def _next(format_: Format, out: Path) -> str:
    if format_ == "hf":
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
    return f"NANOCHAT_BASE_DIR={out} in nanochat, whose model source is then `base`"
