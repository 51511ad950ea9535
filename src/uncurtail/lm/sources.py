"""Where text comes from: the parts of a corpus, each a stream that reads the same every time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from uncurtail.errors import UserError
from uncurtail.lm import corpus, grammar, textfiles
from uncurtail.lm.sections import DataSection
from uncurtail.lm.textfiles import Read

Progress = Callable[[str, float], None]  # a stage's name, and the share of it that is done


@dataclass(frozen=True)
class Part:
    """A piece of the text; `identity` changes whenever its documents could."""

    identity: str
    read: Callable[[], Iterator[Read]]


@dataclass(frozen=True)
class Source:
    """All of the text, in order; `origin` says in words which version of it this is, if any."""

    parts: tuple[Part, ...]
    origin: str = ""


@dataclass(frozen=True)
class Downloaded:
    """Files that are here now, whole and checked: path and SHA-256 of each, and their origin."""

    files: tuple[tuple[Path, str], ...]
    origin: str


class Download(Protocol):
    """Bring a section's files here, or find that they are."""

    def __call__(self, section: DataSection, tell: Progress, /) -> Downloaded:
        """The files; raises UserError when they cannot be had."""
        ...


def open_source(section: DataSection, tell: Progress, download: Download | None) -> Source:
    """The text that a section names; files that are elsewhere are downloaded first.

    Raises:
        UserError: Files are missing, or cannot be downloaded; says what to do.
    """
    match section.source:
        case "embedded":
            return Source((_embedded(),))
        case "grammar":
            return Source((_grammar(section),))
        case "files":
            paths = textfiles.matching_files(section.files)
            return Source(tuple(_file(path, _stamp(path), section.text_column) for path in paths))
        case "fineweb-edu":
            if download is None:
                raise UserError(
                    f"{section.repo} is not here: run `uncurtail data prepare` where there is a "
                    "network"
                )
            downloaded = download(section, tell)
            return Source(
                tuple(
                    _file(path, sha256, section.text_column) for path, sha256 in downloaded.files
                ),
                downloaded.origin,
            )


def what_decides(section: DataSection) -> dict[str, Any]:
    """What decides a source's text, beside the settings that every source has."""
    match section.source:
        case "embedded":
            return {"versions": corpus.embedded_versions()}
        case "grammar":
            return {}
        case "files":
            paths = textfiles.matching_files(section.files)
            return {"files": [_stamp(path) for path in paths], "column": section.text_column}
        case "fineweb-edu":
            wanted = {"repo": section.repo, "revision": section.revision, "shards": section.shards}
            return {**wanted, "column": section.text_column}


def _embedded() -> Part:
    kept: list[str] = []  # 14 MB: reading it twice takes seconds

    def read() -> Iterator[Read]:
        if not kept:
            kept.extend(corpus.embedded_documents())
        for index, text in enumerate(kept, 1):
            yield text, index / len(kept)

    return Part("embedded", read)


def _grammar(section: DataSection) -> Part:
    count = section.documents or 2000

    def read() -> Iterator[Read]:
        for index, text in enumerate(grammar.grammar_documents(section.seed, count), 1):
            yield text, index / count

    return Part("grammar", read)


def _file(path: Path, identity: str, column: str) -> Part:
    return Part(identity, lambda: textfiles.read_documents(path, column))


def _stamp(path: Path) -> str:
    """A local file's identity: to hash it would read gigabytes at the start of every run."""
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
