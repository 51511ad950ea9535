"""Writing token shards so that a kill at any time costs one of them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncurtail.lm.manifest import Shard, file_sha256

JOURNAL_FILE = "progress.jsonl"
VAL_FILE = "val.bin"
VAL_TEMPORARY = f"{VAL_FILE}.tmp"


@dataclass(frozen=True)
class Mark:
    """What is done when a training shard is: where to read on, and what came before.

    `part` and `document` name the first document that is in no finished shard. The held-out
    tokens up to here are in the held-out file.
    """

    shard: Shard
    part: int = 0
    document: int = 0
    val_tokens: int = 0
    train_bytes: int = 0
    val_bytes: int = 0


@dataclass(frozen=True)
class Gap:
    """A finished shard that is not there, and where its first document is."""

    shard: Shard
    part: int
    document: int


@dataclass(frozen=True)
class Document:
    """A document's tokens, its UTF-8 size, and the part and document to read after it."""

    tokens: NDArray[np.uint32]
    size_bytes: int
    held_out: bool
    after: tuple[int, int]


class Journal:
    """The marks of a folder, one a line below a line that says what it is being made from."""

    def __init__(self, folder: Path, key: str, tokenizer_sha256: str) -> None:
        self._path = folder / JOURNAL_FILE
        self._head = {"key": key, "tokenizer_sha256": tokenizer_sha256}
        self.marks = self._usable(folder)
        # a torn or unusable end goes, whole lines stay: what follows is appended to them
        lines = [self._head, *map(asdict, self.marks)]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        temporary.replace(self._path)

    def add(self, mark: Mark) -> None:
        """Append a mark, on disk when this returns."""
        self.marks.append(mark)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(mark)) + "\n")
            _sync(file.fileno())

    def _usable(self, folder: Path) -> list[Mark]:
        """The marks of the same inputs, up to the first whose tokens are not there."""
        val_bytes = max(_size(folder / name) for name in (VAL_FILE, VAL_TEMPORARY))
        marks: list[Mark] = []
        for mark in _read_marks(self._path, self._head):
            width = mark.shard.size_bytes // mark.shard.tokens
            if not _is_whole(folder, mark.shard) or mark.val_tokens * width > val_bytes:
                break
            marks.append(mark)
        return marks

    @classmethod
    def gaps(cls, folder: Path, key: str, tokenizer_sha256: str) -> list[Gap]:
        """The finished shards of the same inputs that are not there any more."""
        head = {"key": key, "tokenizer_sha256": tokenizer_sha256}
        marks = _read_marks(folder / JOURNAL_FILE, head)
        starts = [(0, 0), *((mark.part, mark.document) for mark in marks)]
        return [
            Gap(mark.shard, *start)
            for start, mark in zip(starts, marks, strict=False)
            if not _is_whole(folder, mark.shard)
        ]


def journaled_tokenizer(folder: Path, key: str) -> str | None:
    """The SHA-256 of the tokenizer that this folder's shards are being made with, if `key` is."""
    head = next(iter(_lines(folder / JOURNAL_FILE)), None)
    if head is None or head.get("key") != key:
        return None
    return str(head.get("tokenizer_sha256"))


def repair(folder: Path, gap: Gap, documents: Iterable[Document], shard_tokens: int) -> bool:
    """Make a missing shard again from its first document on; whether it is the same."""
    width = gap.shard.size_bytes // gap.shard.tokens
    data = bytearray()
    for document in documents:
        if not document.held_out:
            data += document.tokens.astype(f"<u{width}").tobytes()
        if len(data) >= shard_tokens * width:
            break
    if hashlib.sha256(data).hexdigest() != gap.shard.sha256:
        return False
    _put(folder / gap.shard.name, data)
    return True


class ShardWriter:
    """Takes documents' tokens in order and writes them as shards of about `shard_tokens`.

    A training shard ends at the first document's end at or above `shard_tokens`; it is on disk,
    whole and under its name, before the journal says so. Held-out tokens are all in one file.
    After a kill, `Journal` and a new writer go on where the last finished shard ended.
    """

    def __init__(self, folder: Path, width: int, shard_tokens: int, journal: Journal) -> None:
        self._folder, self._width, self._limit = folder, width, shard_tokens
        self._journal = journal
        self._train, self._val = bytearray(), bytearray()
        self._val_path = folder / VAL_TEMPORARY
        last = self._reopen_val()
        self.part, self.document = (last.part, last.document) if last else (0, 0)
        self.val_tokens = last.val_tokens if last else 0
        self.train_bytes = last.train_bytes if last else 0
        self.val_bytes = last.val_bytes if last else 0

    @property
    def train_tokens(self) -> int:
        """Training tokens so far."""
        finished = sum(mark.shard.tokens for mark in self._journal.marks)
        return finished + len(self._train) // self._width

    def add(self, document: Document) -> None:
        """Take the next document."""
        data = document.tokens.astype(f"<u{self._width}").tobytes()
        self.part, self.document = document.after
        if document.held_out:
            self._val += data
            self.val_tokens += len(document.tokens)
            self.val_bytes += document.size_bytes
            return
        self._train += data
        self.train_bytes += document.size_bytes
        if len(self._train) >= self._limit * self._width:
            self._finish_shard()

    def finish(self) -> tuple[tuple[Shard, ...], Shard]:
        """All training shards and the held-out one, on disk."""
        if self._train:
            self._finish_shard()
        self._flush_val()
        sha256 = file_sha256(self._val_path)
        self._val_path.replace(self._folder / VAL_FILE)
        val = Shard(VAL_FILE, self.val_tokens, self.val_tokens * self._width, sha256)
        train = tuple(mark.shard for mark in self._journal.marks)
        self._sweep({shard.name for shard in train})
        return train, val

    def _finish_shard(self) -> None:
        self._flush_val()
        name = f"train-{len(self._journal.marks):05d}.bin"
        _put(self._folder / name, self._train)
        shard = Shard(
            name,
            len(self._train) // self._width,
            len(self._train),
            hashlib.sha256(self._train).hexdigest(),
        )
        self._train = bytearray()
        counts = (self.part, self.document, self.val_tokens, self.train_bytes, self.val_bytes)
        self._journal.add(Mark(shard, *counts))

    def _flush_val(self) -> None:
        with self._val_path.open("ab") as file:
            file.write(self._val)
            file.flush()
            _sync(file.fileno())
        self._val = bytearray()

    def _reopen_val(self) -> Mark | None:
        """Cut the held-out file to what the last mark counts, which the journal saw is there."""
        last = self._journal.marks[-1] if self._journal.marks else None
        wanted = last.val_tokens * self._width if last else 0
        if max(0, _size(self._val_path)) < wanted:
            shutil.copyfile(self._folder / VAL_FILE, self._val_path)
        with self._val_path.open("ab") as file:
            file.truncate(wanted)
        return last

    def _sweep(self, kept: Iterable[str]) -> None:
        """Remove shards that an earlier, longer corpus left here."""
        for path in self._folder.glob("train-*.bin*"):
            if path.name not in kept:
                path.unlink()


def _put(path: Path, data: bytearray) -> None:
    """Write a file atomically; it is on disk when it has its name."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        _sync(file.fileno())
    # replaced, never truncated: a reader may have the old file mapped
    temporary.replace(path)


def _read_marks(path: Path, head: dict[str, str]) -> list[Mark]:
    """The marks below this head; none below another."""
    lines = _lines(path)
    if not lines or lines[0] != head:
        return []
    return [Mark(**{**line, "shard": Shard(**line["shard"])}) for line in lines[1:]]


def _is_whole(folder: Path, shard: Shard) -> bool:
    return _size(folder / shard.name) == shard.size_bytes


def _lines(path: Path) -> list[dict[str, Any]]:
    """A journal's whole lines; a torn last one is dropped."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    lines: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)
