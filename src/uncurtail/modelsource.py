"""Which model a user means: a run's newest or another version, a baseline's, or that in a file.

Everything is only read: a run or a baseline may be going on.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uncurtail import wiring
from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.baselinefolder import PROGRESS_FILE, WEIGHTS_FILE, Progress, saved
from uncurtail.config import Config, ConfigError
from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.errors import UserError
from uncurtail.runfolder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Source:
    """What a user points at: a run, a baseline, or one model of either.

    Of a run the `version`, or the newest; a file may lie elsewhere than the `run` it is of.
    """

    path: Path
    run: Path | None = None
    version: int | None = None

    def owner(self) -> RunFolder | None:
        """The run or baseline that says what the model is; None for a file without one.

        Raises:
            UserError: There is nothing there, or not what it is said to be.
        """
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist: name a run folder or a checkpoint file")
        if self.path.is_dir():
            path, remedy = self.path, "name one below runs/, or a checkpoint file"
        elif self.run is not None:
            path, remedy = self.run, "--run names the run that the checkpoint is of"
        else:
            above = (RunFolder(path) for path in self.path.resolve().parents)
            return next((folder for folder in above if folder.resolved.is_file()), None)
        folder = RunFolder(path)
        if not folder.resolved.is_file():
            raise UserError(f"{path} is no run folder: {remedy}")
        return folder

    def folder(self) -> RunFolder:
        """As `owner`, which has to be known.

        Raises:
            UserError: It is not.
        """
        owner = self.owner()
        if owner is None:
            raise UserError(
                f"{self.path.resolve().parent} is no run folder: say with --run which run "
                f"{self.path} is of: it knows the vocabulary"
            )
        return owner


@dataclass(frozen=True, slots=True)
class FoundModel:
    """Weights that fit the config of the run or baseline that they are of.

    `commit` is None for a baseline's, and for a file that no commit names; `steps` are those of a
    baseline, 0 if that is not known.
    """

    folder: RunFolder
    config: Config
    weights: "Mapping[str, Tensor]"
    commit: Commit | None
    steps: int

    @property
    def tokens(self) -> int | None:
        """What it was trained on; None if nobody knows."""
        if self.commit is not None:
            return self.commit.tokens
        tokens_per_step = self.config.train.batch_sequences * self.config.model.sequence_length
        return self.steps * tokens_per_step or None


def find_model(source: Source) -> FoundModel:
    """The model that is meant.

    Raises:
        UserError: One of the many things that can be missing, each with its remedy.
    """
    from uncurtail.lm.export import mismatch

    folder = source.folder()
    try:
        config = wiring.read_config(folder)
    except ConfigError as error:
        raise UserError(f"{error}: it was written by another version of uncurtail") from None
    content, commit, steps = _content(source, folder, wiring.store(config, folder))
    weights = decoded(content, source.path)
    odd = mismatch(config.model, weights)
    if odd is not None:
        raise UserError(
            f"{source.path} is of another architecture than {folder.path} trains: {odd}"
        )
    return FoundModel(folder, config, weights, commit, steps)


def decoded(content: bytes, path: Path) -> "Mapping[str, Tensor]":
    """Weights from bytes.

    Raises:
        UserError: They are none of ours.
    """
    from uncurtail.lm.checkpoint import decode_weights

    try:
        return decode_weights(content)
    except ValueError as error:
        raise UserError(f"{path} holds no model of ours: {error}") from None


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _content(
    source: Source, folder: RunFolder, blobs: ObjectStore
) -> tuple[bytes, Commit | None, int]:
    """The weights as bytes, and the commit that names them or the baseline's steps."""
    baseline = (folder.path / PROGRESS_FILE).is_file()
    if source.version is not None and (baseline or not source.path.is_dir()):
        raise UserError(f"--version goes with a run folder, {source.path} is none: leave it out")
    if not source.path.is_dir():
        content = read(source.path)
        if baseline:
            return content, None, _steps_of(source.path, folder.path)
        return content, _commit_of(source.path, content, blobs), 0
    if baseline:
        path = _newest_of_baseline(folder.path)
        return read(path), None, _steps_of(path, folder.path)
    commit, content = _committed(folder, blobs, source.version)
    return content, commit, 0


def _newest_of_baseline(folder: Path) -> Path:
    """What its record names; else what it ended with."""
    progress = Progress.load(folder)
    newest = folder / WEIGHTS_FILE
    if progress is not None:
        named = saved(folder, progress.steps) / WEIGHTS_FILE
        newest = named if named.is_file() else newest
    if not newest.is_file():
        raise UserError(f"{folder} has saved no model yet: wait for it, or --resume it")
    return newest


def _steps_of(path: Path, folder: Path) -> int:
    """After how many of a baseline's steps these weights were saved; 0 if that is not known."""
    place = path.resolve().parent
    if place.parent == saved(folder, 0).parent and place.name.isdecimal():
        return int(place.name)
    progress = Progress.load(folder) if place == folder else None
    return 0 if progress is None else progress.steps


def _committed(folder: RunFolder, blobs: ObjectStore, version: int | None) -> tuple[Commit, bytes]:
    """A commit and its model. Unlike `wiring.newest_commit` this moves nothing."""
    names = _names(blobs)
    if version is not None:
        return _that_commit(folder, blobs, names, version)
    for commit in _readable(names, blobs):
        try:
            return commit, blobs.get(commit.model)
        except BlobError:  # an older one may do
            continue
    if names:
        raise UserError(
            f"{folder.path} has no version whose weights can be read: try again, or see "
            f"`uncurtail verify {folder.path}`"
        )
    raise UserError(f"{folder.path} has no commit yet: wait for its first round, or --resume it")


def _that_commit(
    folder: RunFolder, blobs: ObjectStore, names: list[str], version: int
) -> tuple[Commit, bytes]:
    if commits.key(version) not in names:
        newest = f"the newest is {int(Path(names[-1]).stem)}" if names else "there is none yet"
        raise UserError(f"{folder.run_id} has no version {version}: {newest}")
    try:
        commit = Commit.decode(blobs.get(commits.key(version)))
        return commit, blobs.get(commit.model)
    except (BlobError, ValueError):
        raise UserError(
            f"{folder.run_id}: the weights of version {version} are not kept: leave out --version "
            "for the newest"
        ) from None


def _commit_of(path: Path, content: bytes, blobs: ObjectStore) -> Commit | None:
    """The newest commit that names this model; None for a file that no commit names."""
    digest = hashlib.sha256(content).hexdigest()
    if HASH.fullmatch(path.name) and path.name != digest:
        raise UserError(f"{path} is damaged: its hash is another; use another commit's model")
    for commit in _readable(_names(blobs), blobs):
        if commit.model == f"objects/{digest}":
            return commit
        if commit.outer == f"objects/{digest}":
            raise UserError(
                f"{path} is the outer optimizer's momentum of version {commit.version}: its model "
                f"is {commit.model}"
            )
    return None


def _names(blobs: ObjectStore) -> list[str]:
    """The keys of all commits, oldest first."""
    try:
        return [name for name in blobs.keys("commits") if name.endswith(".json")]
    except BlobError as error:
        raise UserError(f"{error}: is store.url reachable from here?") from None


def _readable(names: list[str], blobs: ObjectStore) -> Iterator[Commit]:
    """Every commit that can be read, newest first."""
    for name in reversed(names):
        try:
            yield Commit.decode(blobs.get(name))
        except (BlobError, ValueError):
            continue
