"""Documents in files: Parquet, JSON Lines and plain text, read as a stream."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from uncurtail.errors import UserError

TEXT_DOCUMENT_CHARACTERS = 8192  # a text file is cut at the first blank line after so many
LONGEST_DOCUMENT_CHARACTERS = 1 << 20  # and at a line's end after so many, blank or not
PARQUET_ROWS = 1024  # read at a time
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}

Read = tuple[str, float]  # a document, and the share of its file that has been read


def matching_files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that some globs name, each once and sorted; `**` is any depth.

    Raises:
        UserError: A glob names no file, or one of a kind that is not known.
    """
    found: set[Path] = set()
    for pattern in patterns:
        paths = {Path(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207
        paths = {path for path in paths if path.is_file()}
        if not paths:
            raise UserError(f"data.files: {pattern!r} names no file: check the glob")
        found |= paths
    for path in found:
        _kind(path)
    return sorted(found)


def read_documents(path: Path, column: str) -> Iterator[Read]:
    """A file's documents in order; empty ones are left out.

    A row of Parquet or of JSON Lines is a document, its text in `column`. Plain text is cut into
    documents of whole paragraphs, so that a part of it can be held out.

    Raises:
        UserError: The file is not what its name says, or has no such column; says what to do.
    """
    readers = {"parquet": _parquet, "jsonl": _json_lines, "text": _paragraphs}
    try:
        for text, share in readers[_kind(path)](path, column):
            if text.strip():
                # half a surrogate pair, as JSON can hold one, has no bytes
                yield text.encode("utf-8", "replace").decode("utf-8"), share
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}: replace it, or leave it out") from error


def _kind(path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    kind = SUFFIXES.get(suffix)
    if kind is None or (path.suffix == ".gz" and kind == "parquet"):
        known = ", ".join(SUFFIXES)
        raise UserError(f"data.files: {path} is none of {known} (text also with .gz): convert it")
    return kind


def _parquet(path: Path, column: str) -> Iterator[Read]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if column not in columns:
                raise UserError(
                    f"{path} has no column {column!r}: set data.text_column to one of "
                    f"{', '.join(columns)}"
                )
            done, total = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    done += 1
                    yield _as_text(text, f"{path}, row {done}", column), done / total
    except pa.ArrowException as error:
        raise UserError(
            f"{path} is no whole Parquet file ({_first_line(error)}): delete it and get it again"
        ) from error


def _json_lines(path: Path, column: str) -> Iterator[Read]:
    with _opened(path) as (raw, lines):
        size = max(1, path.stat().st_size)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[column]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: no JSON object with {column!r} ({error!r}): mend the "
                    "line, or set data.text_column"
                ) from error
            yield _as_text(text, f"{path}, line {number}", column), raw.tell() / size


def _paragraphs(path: Path, column: str) -> Iterator[Read]:
    del column  # plain text has none
    with _opened(path) as (raw, lines):
        size = max(1, path.stat().st_size)
        kept: list[str] = []
        length = 0
        for line in lines:
            text = line.decode("utf-8", "replace")
            kept.append(text)
            length += len(text)
            blank = not text.strip() and length >= TEXT_DOCUMENT_CHARACTERS
            if blank or length >= LONGEST_DOCUMENT_CHARACTERS:
                yield "".join(kept), raw.tell() / size
                kept, length = [], 0
        yield "".join(kept), 1.0


class _opened:  # noqa: N801  # used like `open`
    """A file's raw bytes, to see how far reading has come, and its lines, unpacked if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[BinaryIO, Iterator[bytes]]:
        self._raw = self._path.open("rb")
        unpacked = gzip.open(self._raw) if self._path.suffix == ".gz" else self._raw
        # a line without an end would be read whole
        return self._raw, iter(lambda: unpacked.readline(LONGEST_DOCUMENT_CHARACTERS * 64), b"")

    def __exit__(self, *exception: object) -> None:
        self._raw.close()


def _as_text(value: object, where: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} is no text: set data.text_column")
    return value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
