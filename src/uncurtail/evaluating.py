"""What `uncurtail eval` does: from a run or a checkpoint to what its model can do, in words."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncurtail.datanote import noted_data
from uncurtail.errors import UserError
from uncurtail.lm.sections import ModelSection, TrainSection
from uncurtail.modelsource import Source, decoded, find_model, read
from uncurtail.runfolder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from uncurtail.lm.evaluate import Measured


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure; None: the newest version, no tasks, the run's data and sequences.

    A file that is of no run says neither its data nor its `sequence_length`.
    """

    what: Path
    version: int | None = None
    tasks: Path | None = None
    data: Path | None = None
    sequences: int | None = None
    run: Path | None = None
    sequence_length: int | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """Weights, and what is known of them; only a run's have a version."""

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
    model = _model(request)
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


def _model(request: Request) -> _Model:
    source = Source(request.what, request.run, request.version)
    if source.owner() is None:
        return _of_no_run(request)
    if request.sequence_length is not None:
        raise UserError("--sequence-length goes with a file that is of no run: leave it out")
    found = find_model(source)
    if found.commit is not None:
        name = f"{found.folder.run_id}, version {found.commit.version}"
    else:
        name = found.folder.run_id if request.what.is_dir() else request.what.name
    return _Model(
        name,
        None if found.commit is None else found.commit.version,
        found.tokens,
        found.config.model,
        found.config.train,
        found.weights,
        request.data or _data_of(found.folder),
    )


def _of_no_run(request: Request) -> _Model:
    from uncurtail.lm.evaluate import section_of

    path = request.what
    if request.version is not None:
        raise UserError(f"--version goes with a run folder, {path} is a file: leave it out")
    if request.data is None or request.sequence_length is None:
        raise UserError(
            f"{path} is of no run that is known here: name that with --run, or its data and what "
            "it was trained at with --data FOLDER --sequence-length N"
        )
    weights = decoded(read(path), path)
    try:
        section = section_of(weights, request.sequence_length)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    # a trainer wants a budget; nothing is trained here
    train = TrainSection(budget_tokens=1)
    return _Model(path.name, None, None, section, train, weights, request.data)


def _data_of(folder: RunFolder) -> Path:
    try:
        return noted_data(folder.path)
    except UserError as error:
        raise UserError(f"{error}, or name a folder with --data FOLDER") from None


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
