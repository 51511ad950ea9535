"""The corpus as a trainer sees it: memory-mapped tokens in a seeded order, each used once an epoch.

Sequence i of an epoch is tokens [jT, jT + T] of the training stream, with j = order(i); step s of
B sequences is sequences sB to (s+1)B. The tail below one step is left out. The order shuffles
within windows of 2^28 tokens, and the windows: a lease touches a window's shards, not the whole
corpus, and 100 billion tokens need no array of all their sequences.

Suffixes: B sequences, T tokens.
"""
# ruff: noqa: N806

import hashlib
import os
import shutil
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uncurtail.errors import UserError
from uncurtail.lm.manifest import TOKENIZER_FILE, Manifest, Shard, file_sha256
from uncurtail.lm.prepare import default_folder, prepare
from uncurtail.lm.sections import DataSection
from uncurtail.lm.tokenizer import Tokenizer

__all__ = ["Corpus", "DataSection", "Manifest", "Order", "default_folder", "permutation", "prepare"]

WINDOW_TOKENS = 1 << 28  # 16 shards of the usual size; changing it changes every run's order
OPEN_SHARDS = 64  # each map holds a file descriptor; a window and the next need 34

Tokens = NDArray[np.unsignedinteger]
Fetch = Callable[[Shard], Path]  # a file that holds this shard, from wherever it is


class Hasher(Protocol):
    """What `hashlib.sha256()` gives."""

    def update(self, data: bytes, /) -> None:
        """Take in some more bytes."""


def permutation(key: str, count: int) -> NDArray[np.int64]:
    """An order of 0..count-1 for this key, shape (count,), the same on every machine.

    The stable argsort of a hash of (key, i). Not numpy's generators: their streams may change
    between versions, and two sites must agree.
    """
    digest = hashlib.sha256(key.encode()).digest()[:8]
    x = np.arange(count, dtype=np.uint64) + np.uint64(int.from_bytes(digest, "little") >> 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


class Order:
    """The order of an epoch's sequences: 0..count-1, each once.

    Windows of `window` neighbours come in a permuted order, and each is permuted within; what is
    left over below a whole window comes last. Only a window's order is ever in memory.
    """

    def __init__(self, seed: int, epoch: int, count: int, window: int) -> None:
        self._key, self._count, self._window = f"{seed}/{epoch}", count, window
        self._windows = permutation(f"{self._key}/windows", count // window)
        self._within: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def read(self, start: int, stop: int) -> Iterator[int]:
        """The sequences at positions [start, stop)."""
        while start < stop:
            place, offset = divmod(start, self._window)
            whole = place < len(self._windows)
            number = int(self._windows[place]) if whole else place
            end = min(stop, (place + 1) * self._window)
            base = number * self._window
            for index in self._order_within(number)[offset : offset + end - start].tolist():
                yield base + index
            start = end

    def _order_within(self, number: int) -> NDArray[np.int64]:
        if number not in self._within:
            size = min(self._window, self._count - number * self._window)
            # a corpus of one window keeps the order it had before there were windows
            key = f"{self._key}/{number}" if number else self._key
            self._within[number] = permutation(key, size)
            if len(self._within) > 2:  # a step may lie across two
                self._within.popitem(last=False)
        return self._within[number]


class _Stream:
    """Shards read as one long row of tokens, through memory maps opened when first touched."""

    def __init__(
        self,
        folder: Path,
        shards: tuple[Shard, ...],
        dtype: np.dtype[np.generic],
        fetch: Fetch | None,
    ) -> None:
        self._folder, self._shards, self._dtype, self._fetch = folder, shards, dtype, fetch
        self._ends = list(accumulate(shard.tokens for shard in shards))
        self._maps: OrderedDict[int, Tokens] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [start, stop), across shard borders if need be."""
        pieces = []
        while start < stop:
            index = bisect_right(self._ends, start)
            first = self._ends[index - 1] if index else 0
            end = min(stop, self._ends[index])
            pieces.append(self._map(index)[start - first : end - first])
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _map(self, index: int) -> Tokens:
        known = self._maps.get(index)
        if known is not None:
            self._maps.move_to_end(index)
            return known
        shard = self._shards[index]
        path = self._folder / shard.name
        if self._fetch is not None and not path.exists():
            _place(self._fetch(shard), shard, path)
        # a plain array over the map: slices of np.memmap cost 10x
        opened: Tokens = np.asarray(np.memmap(path, dtype=self._dtype, mode="r"))
        if len(opened) != shard.tokens:
            raise UserError(f"{path} has {len(opened)} tokens, not {shard.tokens}: delete it")
        self._maps[index] = opened
        if len(self._maps) > OPEN_SHARDS:
            self._maps.popitem(last=False)
        return opened


def _place(source: Path, shard: Shard, path: Path) -> None:
    """Put a fetched shard where it belongs, whole or not at all.

    Raises:
        UserError: It is not the shard that the manifest names.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several ranks may fetch it
    try:
        shutil.copyfile(source, temporary)
        if file_sha256(temporary) != shard.sha256:
            raise UserError(
                f"{source} is not the {shard.name} of the manifest (other SHA-256): fetch it "
                "again, or prepare the data again where it comes from"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Corpus:
    """A prepared folder, open for reading; cheap to open and safe to share between processes.

    With `fetch`, the folder needs the manifest and the tokenizer alone: a shard that is not there
    is fetched when a step first touches it, and kept once its hash is right.
    """

    def __init__(self, folder: Path, manifest: Manifest, fetch: Fetch | None = None) -> None:
        self.folder, self.manifest = folder, manifest
        self._train = _Stream(folder, manifest.train, manifest.dtype, fetch)
        self._val = _Stream(folder, (manifest.val,), manifest.dtype, fetch)
        self._order: tuple[tuple[int, int], Order] | None = None

    @classmethod
    def open(cls, folder: Path, fetch: Fetch | None = None) -> "Corpus":
        """Open what `prepare` made.

        Raises:
            UserError: The folder is not (wholly) prepared; names it and what to do.
        """
        manifest = Manifest.load(folder)
        reason = manifest.damage(folder, fetched=fetch is not None)
        if reason is not None:
            raise UserError(f"{folder}: {reason}; run `uncurtail data prepare` again")
        return cls(folder, manifest, fetch)

    def tokenizer(self) -> Tokenizer:
        """The vocabulary of these tokens.

        Raises:
            UserError: The file is damaged, or another tokenizer's.
        """
        path = self.folder / TOKENIZER_FILE
        tokenizer = Tokenizer.load(path)
        if tokenizer.sha256 != self.manifest.tokenizer_sha256:
            raise UserError(
                f"{path} is not the tokenizer that these tokens were made with: put that one "
                f"back, or delete {self.folder} and prepare the data again"
            )
        return tokenizer

    def steps_per_epoch(self, sequence_length: int, batch_sequences: int) -> int:
        """Whole steps in one pass over the training tokens."""
        return self._sequences(sequence_length) // batch_sequences

    def batch(
        self, epoch: int, step: int, sequence_length: int, batch_sequences: int
    ) -> tuple[Tensor, Tensor]:
        """Inputs and next-token targets of one step, two int64 tensors (B, T).

        Raises:
            IndexError: The epoch has no such step.
        """
        rows = self._rows(epoch, step, sequence_length, batch_sequences)
        return _inputs_and_targets(rows, batch_sequences, sequence_length)

    def hash_step(
        self, hasher: Hasher, epoch: int, step: int, sequence_length: int, batch_sequences: int
    ) -> None:
        """Feed the stored bytes of a step's sequences (T + 1 tokens each) to a hasher, in order."""
        for row in self._rows(epoch, step, sequence_length, batch_sequences):
            hasher.update(row.tobytes())

    def range_sha256(
        self, epoch: int, start: int, stop: int, sequence_length: int, batch_sequences: int
    ) -> str:
        """SHA-256 of steps [start, stop): what a site that consumed exactly them reports."""
        hasher = hashlib.sha256()
        for step in range(start, stop):
            self.hash_step(hasher, epoch, step, sequence_length, batch_sequences)
        return hasher.hexdigest()

    def val_batches(
        self, sequence_length: int, sequences: int, batch_sequences: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`sequences` held-out sequences, evenly spaced (all, if fewer), in batches (<= B, T).

        Raises:
            UserError: The held-out tokens are fewer than one sequence.
        """
        T, available = sequence_length, (len(self._val) - 1) // sequence_length
        if available < 1:
            raise UserError(
                f"{self.folder} holds {len(self._val)} validation tokens, fewer than one sequence "
                f"of {T}: raise data.val_share"
            )
        count = min(sequences, available)
        chosen = [index * available // count for index in range(count)]
        for first in range(0, count, batch_sequences):
            batch = chosen[first : first + batch_sequences]
            rows = (self._val.read(index * T, (index + 1) * T + 1) for index in batch)
            yield _inputs_and_targets(rows, len(batch), T)

    def _sequences(self, sequence_length: int) -> int:
        return max(0, (len(self._train) - 1) // sequence_length)

    def _rows(self, epoch: int, step: int, sequence_length: int, batch: int) -> Iterator[Tokens]:
        if not 0 <= step < self.steps_per_epoch(sequence_length, batch):
            raise IndexError(f"step {step} is beyond the epoch")
        order = self._epoch_order(epoch, sequence_length)
        for index in order.read(step * batch, (step + 1) * batch):
            first = index * sequence_length
            yield self._train.read(first, first + sequence_length + 1)

    def _epoch_order(self, epoch: int, sequence_length: int) -> Order:
        if self._order is None or self._order[0] != (epoch, sequence_length):
            count = self._sequences(sequence_length)
            window = max(1, WINDOW_TOKENS // sequence_length)
            order = Order(self.manifest.seed, epoch, count, window)
            self._order = (epoch, sequence_length), order
        return self._order[1]


def _inputs_and_targets(rows: Iterator[Tokens], count: int, length: int) -> tuple[Tensor, Tensor]:
    inputs, targets = np.empty((2, count, length), dtype=np.int64)
    for number, row in enumerate(rows):
        inputs[number], targets[number] = row[:-1], row[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
