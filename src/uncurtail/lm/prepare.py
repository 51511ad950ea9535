"""From text to a folder of token shards: documents, tokenizer, tokens, manifest.

Memory is bounded: text is read twice, once for the tokenizer and once for the tokens, and held a
batch at a time. What is done survives a kill: see `ShardWriter`.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uncurtail.errors import UserError
from uncurtail.lm.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest
from uncurtail.lm.sections import DataSection, ModelSection
from uncurtail.lm.shards import (
    Document,
    Journal,
    ShardWriter,
    journaled_tokenizer,
    repair,
)
from uncurtail.lm.sources import Download, Progress, Source, open_source, what_decides
from uncurtail.lm.tokenizer import Tokenizer, train_tokenizer

LOCK_FILE = ".lock"
FORMAT = 1  # raise when this code makes other tokens from the same inputs
# nanochat trains its 65,536 tokens on 4 billion characters; in proportion, a smaller vocabulary
# needs fewer, but never so few that it learns one topic's words
TOKENIZER_CHARACTERS_PER_TOKEN = 4_000_000_000 // 65_536
LEAST_TOKENIZER_CHARACTERS = 200_000_000
BATCH_DOCUMENTS = 512  # for the encoder's threads to share
BATCH_CHARACTERS = 4_000_000


def default_folder(section: DataSection, model: ModelSection) -> Path:
    """Where this data lives: `section.folder`, or in the user's cache, named by its inputs."""
    if section.folder is not None:
        return section.folder.absolute()  # processes that work elsewhere read it
    return cache_folder() / "data" / inputs_sha256(section, model)[:12]


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "uncurtail"


def inputs_sha256(section: DataSection, model: ModelSection) -> str:
    """Identity of everything that decides the tokens, down to the text's versions.

    Settings that came later enter only where they are not at their defaults, so that folders
    made before them keep their names.
    """
    inputs = {
        "format": FORMAT,
        "vocab_size": model.vocab_size,
        "source": section.source,
        "documents": section.documents,
        "val_share": section.val_share,
        "seed": section.seed,
        **what_decides(section),
    }
    if section.tokenizer is not None:
        inputs["tokenizer"] = Tokenizer.load(section.tokenizer).sha256
    if section.tokenizer_chars is not None:
        inputs["tokenizer_chars"] = section.tokenizer_chars
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def prepare(
    section: DataSection,
    model: ModelSection,
    folder: Path,
    progress: Progress | None = None,
    download: Download | None = None,
) -> Manifest:
    """Make `folder` hold this data; returns at once if it already does.

    The manifest is written last and atomically. After an interruption the next call goes on
    behind the last finished shard. A whole folder of other data is left as it is. `progress` is
    told the stage and its share done, 0 to 1.

    Raises:
        UserError: The inputs cannot be read, are too little to hold some out, do not fit the
            model, or `folder` holds other data; says what to do.
    """
    tell = progress or _tell_nobody
    manifest = _whole(section, model, folder)
    if manifest is None:
        with _locked(folder):
            manifest = _already(section, model, folder)  # perhaps by whom we waited for
            if manifest is None:
                manifest = _Preparation(section, model, folder, tell, download).run()
    tell("ready", 1.0)
    return manifest


def prepare_tokenizer(
    section: DataSection,
    model: ModelSection,
    folder: Path,
    progress: Progress | None = None,
    download: Download | None = None,
) -> Tokenizer:
    """The first part of `prepare`, for which it is then done.

    Raises:
        UserError: As `prepare`.
    """
    if _whole(section, model, folder) is not None:
        return Tokenizer.load(folder / TOKENIZER_FILE)
    with _locked(folder):
        if _already(section, model, folder) is not None:
            return Tokenizer.load(folder / TOKENIZER_FILE)
        preparation = _Preparation(section, model, folder, progress or _tell_nobody, download)
        return preparation.tokenizer()


def tokenizer_of(section: DataSection, vocab_size: int, progress: Progress | None) -> Tokenizer:
    """A new tokenizer for a section's text, kept nowhere.

    Raises:
        UserError: The text cannot be read, or the vocabulary is below 257.
    """
    tell = progress or _tell_nobody
    return _trained(section, vocab_size, open_source(section, tell, None), tell)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder alone: sites that start together share one, the first prepares, others wait.

    The kernel drops the lock of a process that dies. What the disk refuses is the user's to mend.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK_FILE).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}: make room or name another "
            "folder; what is done is kept"
        ) from error


@dataclass(frozen=True)
class _Preparation:
    """One call of `prepare` for a folder that is not whole."""

    section: DataSection
    model: ModelSection
    folder: Path
    tell: Progress
    download: Download | None

    def run(self) -> Manifest:
        inputs = inputs_sha256(self.section, self.model)
        source = open_source(self.section, self.tell, self.download)
        tokenizer = self.tokenizer(source)
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        width = 2 if self.model.vocab_size <= 1 << 16 else 4
        self._repair(source, tokenizer)
        journal = Journal(self.folder, self._key(source), tokenizer.sha256)
        writer = ShardWriter(self.folder, width, self.section.shard_tokens, journal)
        for document in self._documents(source, tokenizer, writer.part, writer.document):
            writer.add(document)
        if not writer.train_tokens or not writer.val_tokens:
            raise UserError(
                f"{writer.train_tokens} training and {writer.val_tokens} held-out tokens: give "
                "more text (raise data.documents, or name more data.files), or raise data.val_share"
            )
        train, val = writer.finish()
        manifest = Manifest(
            inputs_sha256=inputs,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=self.model.vocab_size,
            token_bytes=width,
            seed=self.section.seed,
            split="held out: documents whose SHA-256 is below "
            f"{self.section.val_share} of its range",
            train=train,
            val=val,
            train_bytes=writer.train_bytes,
            val_bytes=writer.val_bytes,
            origin=source.origin,
        )
        manifest.save(self.folder)
        return manifest

    def tokenizer(self, source: Source | None = None) -> Tokenizer:
        """The user's tokenizer, or an earlier call's, or a new one; in the folder on return."""
        source = source or open_source(self.section, self.tell, self.download)
        path = self.folder / TOKENIZER_FILE
        key = self._key(source)
        made = journaled_tokenizer(self.folder, key)
        if made is not None and path.is_file():
            tokenizer = Tokenizer.load(path)
            if tokenizer.sha256 == made:
                return tokenizer
        if self.section.tokenizer is not None:
            tokenizer = Tokenizer.load(self.section.tokenizer)
            self._check_vocabulary(tokenizer)
        else:
            tokenizer = _trained(self.section, self.model.vocab_size, source, self.tell)
        # what is there is of no use without the tokenizer that it was made with
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        tokenizer.save(path)
        Journal(self.folder, key, tokenizer.sha256)
        return tokenizer

    def _check_vocabulary(self, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size > self.model.vocab_size:
            raise UserError(
                f"{self.section.tokenizer} has {tokenizer.vocab_size} tokens, the model "
                f"{self.model.vocab_size}: set model.vocab_size = {tokenizer.vocab_size}, or "
                "train a smaller tokenizer"
            )

    def _documents(
        self, source: Source, tokenizer: Tokenizer, part: int, document: int
    ) -> Iterator[Document]:
        """The documents from this one on, encoded."""
        threads = os.cpu_count() or 1
        for number in range(part, len(source.parts)):
            first = document if number == part else 0
            for start, batch, share in _batches(source.parts[number].read(), first):
                encoded = tokenizer.encode_arrays(batch, threads)
                for offset, (text, tokens) in enumerate(zip(batch, encoded, strict=True)):
                    raw, after = text.encode(), (number, start + offset + 1)
                    held_out = _held_out(raw, self.section.val_share)
                    yield Document(tokens, len(raw), held_out, after)
                self.tell("tokens", (number + share) / len(source.parts))

    def _repair(self, source: Source, tokenizer: Tokenizer) -> None:
        """Make shards again that were finished and then lost, each from where it began."""
        for gap in Journal.gaps(self.folder, self._key(source), tokenizer.sha256):
            documents = self._documents(source, tokenizer, gap.part, gap.document)
            if not repair(self.folder, gap, documents, self.section.shard_tokens):
                return  # then all behind it is made again

    def _key(self, source: Source) -> str:
        """Identity of what shards are made from: the inputs, and each part as it is now."""
        parts = [part.identity for part in source.parts]
        content = [inputs_sha256(self.section, self.model), parts, self.section.shard_tokens]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _trained(section: DataSection, vocab_size: int, source: Source, tell: Progress) -> Tokenizer:
    wanted = section.tokenizer_chars or max(
        LEAST_TOKENIZER_CHARACTERS, TOKENIZER_CHARACTERS_PER_TOKEN * vocab_size
    )

    def head() -> Iterator[str]:
        """The first training documents, up to about so many characters."""
        left = wanted
        for number, part in enumerate(source.parts):
            for text, share in part.read():
                if left <= 0:
                    return
                if not _held_out(text.encode(), section.val_share):
                    left -= len(text)
                    yield text
                tell("tokenizer", max((number + share) / len(source.parts), 1 - left / wanted))

    return train_tokenizer(head(), vocab_size)


def _tell_nobody(stage: str, share: float) -> None:
    pass


def _already(section: DataSection, model: ModelSection, folder: Path) -> Manifest | None:
    """The folder's manifest if it is whole and made from these inputs.

    Raises:
        UserError: It is whole, but made from others.
    """
    try:
        manifest = Manifest.load(folder)
    except ValueError:  # none, or torn: make it anew, on purpose
        return None
    if manifest.damage(folder) is not None:
        return None
    if manifest.inputs_sha256 != inputs_sha256(section, model):
        raise UserError(
            f"{folder} holds other data, {manifest.train_tokens:,} tokens of a vocabulary of "
            f"{manifest.vocab_size}: name another folder, or delete it"
        )
    return manifest


def _whole(section: DataSection, model: ModelSection, folder: Path) -> Manifest | None:
    """As `_already`, without the lock: whole data may be on a disk that can only be read."""
    try:
        return _already(section, model, folder)
    except OSError:  # whoever takes the lock says it
        return None


def _held_out(raw: bytes, val_share: float) -> bool:
    """Whether a document is for validation: decided by its own hash alone."""
    digest = hashlib.sha256(raw).digest()
    return int.from_bytes(digest[:8], "big") < val_share * 2**64


def _batches(
    documents: Iterator[tuple[str, float]], first: int
) -> Iterator[tuple[int, list[str], float]]:
    """Documents from number `first` on: (number of the batch's first, the batch, share read)."""
    batch: list[str] = []
    characters, start, share = 0, first, 0.0
    for number, (text, share) in enumerate(documents):
        if number < first:
            continue
        batch.append(text)
        characters += len(text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield start, batch, share
            start, batch, characters = number + 1, [], 0
    if batch:
        yield start, batch, share
