"""What `uncurtail eval` does: from a run or a checkpoint to what its model can do, in words."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncurtail import wiring
from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.config import ConfigError
from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.errors import UserError
from uncurtail.lm.sections import ModelSection, TrainSection
from uncurtail.runfolder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from uncurtail.lm.evaluate import Measured


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure; None: the newest version, no tasks, the run's data and sequences."""

    what: Path
    version: int | None = None
    tasks: Path | None = None
    data: Path | None = None
    sequences: int | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """Weights, and what is known of them; a bare checkpoint has no version."""

    name: str
    version: int | None
    tokens: int | None
    section: ModelSection
    train: TrainSection
    weights: "Mapping[str, Tensor]"
    data: Path


def evaluate(request: Request, *, as_json: bool) -> str:
    """Measure a model; what to print.

    Raises:
        UserError: No such model, data or task, or they do not fit each other.
    """
    from uncurtail.lm.core_tasks import load_tasks
    from uncurtail.lm.data import Corpus
    from uncurtail.lm.evaluate import measure

    tasks = {} if request.tasks is None else load_tasks(request.tasks)
    model = _of_run(request) if request.what.is_dir() else _of_checkpoint(request)
    # how a site computes is its own; what is measured is not
    changes: dict[str, Any] = {"threads": None, "compile": "never", "deterministic": False}
    if request.sequences is not None:
        changes["val_sequences"] = request.sequences
    train = model.train.model_copy(update=changes)
    try:
        corpus = Corpus.open(model.data)
        measured = measure(model.section, train, model.weights, corpus, tasks)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{model.name}: {error}") from error
    return json.dumps(_json(model, measured)) if as_json else _words(model, measured)


def _of_run(request: Request) -> _Model:
    folder = RunFolder(request.what)
    if not folder.resolved.is_file():
        raise UserError(
            f"{request.what} is no run folder: name one below runs/, or a file of weights"
        )
    try:
        config = wiring.read_config(folder)
    except ConfigError as error:
        raise UserError(f"{error}: it was written by another version of uncurtail") from None
    blobs = wiring.store(config, folder)
    commit, content = _commit(folder, blobs, request.version)
    name = f"{folder.run_id}, version {commit.version}"
    return _Model(
        name,
        commit.version,
        commit.tokens,
        config.model,
        config.train,
        _decode(content, name),
        request.data or _data_of_run(folder),
    )


def _of_checkpoint(request: Request) -> _Model:
    from uncurtail.lm.evaluate import section_of

    path = request.what
    if request.version is not None:
        raise UserError(f"--version goes with a run folder, {path} is a file: leave it out")
    if request.data is None:
        raise UserError(f"{path} says nothing of its data: name it with --data FOLDER")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a run folder or a file of weights") from (
            None
        )
    weights = _decode(content, str(path))
    try:
        section = section_of(weights, ModelSection().sequence_length)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    # a trainer wants a budget; nothing is trained here
    return _Model(
        path.name, None, None, section, TrainSection(budget_tokens=1), weights, request.data
    )


def _commit(folder: RunFolder, blobs: ObjectStore, version: int | None) -> tuple[Commit, bytes]:
    """A commit and its model, only read: the run may be going on.

    Raises:
        UserError: There is none, or its weights are gone.
    """
    try:
        known = [key for key in blobs.keys("commits") if key.endswith(".json")]
    except BlobError as error:
        raise UserError(f"{folder.run_id}: {error}") from None
    if version is not None:
        return _that_commit(folder, blobs, known, version)
    for key in reversed(known):
        try:
            commit = Commit.decode(blobs.get(key))
            return commit, blobs.get(commit.model)
        except (BlobError, ValueError):  # an older one may do
            continue
    if known:
        raise UserError(f"{folder.run_id}: no version's weights can be read: try again, or verify")
    raise UserError(f"{folder.run_id} has no commit yet: wait for its first round, or --resume it")


def _that_commit(
    folder: RunFolder, blobs: ObjectStore, known: list[str], version: int
) -> tuple[Commit, bytes]:
    if commits.key(version) not in known:
        newest = f"the newest is {int(Path(known[-1]).stem)}" if known else "there is none yet"
        raise UserError(f"{folder.run_id} has no version {version}: {newest}")
    try:
        commit = Commit.decode(blobs.get(commits.key(version)))
        return commit, blobs.get(commit.model)
    except (BlobError, ValueError):
        raise UserError(
            f"{folder.run_id}: the weights of version {version} are not kept: leave out --version "
            "for the newest"
        ) from None


def _data_of_run(folder: RunFolder) -> Path:
    """The data that the run was trained on.

    Raises:
        UserError: It is not there any more, or is other data now.
    """
    from uncurtail.lm.manifest import Manifest

    try:
        body = json.loads((folder.path / "data.json").read_text(encoding="utf-8"))
        data, wanted = Path(body["folder"]), str(body["manifest_sha256"])
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder.run_id} names no data: use --data FOLDER") from None
    try:
        found = Manifest.load(data).sha256
    except ValueError as error:
        raise UserError(f"{error}, or name the data with --data FOLDER") from None
    if found != wanted:
        raise UserError(
            f"{data} holds other data than {folder.run_id} was trained on: prepare that again, or "
            "name a folder with --data FOLDER"
        )
    return data


def _decode(content: bytes, name: str) -> "Mapping[str, Tensor]":
    from uncurtail.lm.checkpoint import decode_weights

    try:
        return decode_weights(content)
    except ValueError as error:
        raise UserError(
            f"{name}: {error}: name a run folder, or a file that this uncurtail wrote"
        ) from None


def _json(model: _Model, measured: "Measured") -> dict[str, Any]:
    from uncurtail.lm.core_tasks import core

    return {
        "model": model.name,
        "version": model.version,
        "tokens": model.tokens,
        "val_loss": measured.val_loss,
        "bits_per_byte": measured.bits_per_byte,
        "tasks": {name: asdict(score) for name, score in measured.tasks.items()},
        "core": core(measured.tasks),
    }


def _words(model: _Model, measured: "Measured") -> str:
    from uncurtail.lm.core_tasks import core

    trained = "" if model.tokens is None else f", {model.tokens:,} tokens"
    lines = [
        f"{model.name}{trained}",
        f"  validation loss  {measured.val_loss:.4f} nats per token",
        f"  bits per byte    {measured.bits_per_byte:.4f}",
    ]
    if measured.tasks:
        width = max(map(len, [*measured.tasks, "CORE"]))
        lines.append(f"  {'task':<{width}}  accuracy  centered  questions")
        lines += [
            f"  {name:<{width}}  {score.accuracy:>8.3f}  {score.centered:>8.3f}  "
            f"{score.questions:>9}"
            for name, score in measured.tasks.items()
        ]
        lines.append(f"  {'CORE':<{width}}  {'':>8}  {core(measured.tasks):>8.3f}")
    return "\n".join(lines)
