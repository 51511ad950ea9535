"""The processes of one site that train one model together: who we are, and what passes between us.

The first rank decides and says so; the others hear it, between orders and before each step. So all
stop at the same step by construction. A rank that dies closes its connections, which ends the rest.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Between orders a rank waits for as long as a site may idle. Inside a step it is minutes: one rank
# may still compile while the others wait for its gradients.
IDLE = timedelta(days=30)
STEP = timedelta(minutes=20)
BUCKET_ELEMENTS = 1 << 25  # 128 MB of float32 at a time: fills a link, and is little beside a model


class Word(IntEnum):
    """What the first rank says to the others."""

    GO = 0  # take the next step
    STOP = 1  # the order ends here
    TRAIN = 2
    EVALUATE = 3
    LOAD = 4  # take over the weights
    RESTORE = 5  # take over the optimizer state
    LEAVE = 6


class PartedError(RuntimeError):
    """A rank failed by itself while the others wait for it: all of them have to end."""


class Ranks:
    """This process's place among those of its site; alone unless it has `join`ed others.

    Every method but `first`, `tell` and `hear` is called by all ranks, in the same order.
    """

    def __init__(self, device: str = "cpu", rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = torch.device(device), rank, size
        # a group of its own: NCCL moves nothing on the CPU, and its patience is of another kind
        self._words = None if size == 1 else dist.new_group(backend="gloo", timeout=IDLE)

    @classmethod
    def join(cls, kind: str) -> "Ranks":
        """Meet the others that torchrun's variables tell of; without them, be alone.

        Args:
            kind: "cpu" or "cuda"; each rank takes a GPU of its own.

        Raises:
            ValueError: There are more ranks than GPUs.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(kind)
        rank, device = int(os.environ["RANK"]), kind
        if kind == "cuda":
            local = int(os.environ.get("LOCAL_RANK", rank))
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"rank {local} finds {torch.cuda.device_count()} GPUs: lower ranks, or name "
                    "as many GPUs as ranks in cuda_devices"
                )
            device = f"cuda:{local}"
            torch.cuda.set_device(local)
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=STEP)
        return cls(device, rank, size)

    @property
    def first(self) -> bool:
        """Whether this rank decides, and alone speaks to the world."""
        return self.rank == 0

    def leave(self) -> None:
        """Part without waiting for the others."""
        if self.size > 1:
            self._words = None
            dist.destroy_process_group()

    def end(self, code: int = 0) -> None:
        """Part, and end this process with `code` at once; alone, do neither.

        Not by the interpreter's way out: torch may keep gloo's threads (it did wherever
        torch._dynamo had been imported), and one of them that hears another rank hang up in the
        middle of it aborts a process whose work is done.
        """
        if self.size == 1:
            return
        self.leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within, what one rank alone may fail at is not to be survived, unless it is alone.

        Raises:
            PartedError: Another rank would wait for this one for ever.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            if self.size == 1:
                raise
            raise PartedError(f"rank {self.rank} of {self.size}: {error}") from error

    def tell(self, word: Word, body: Any = None) -> None:
        """Say a word to the others, with a JSON body; only the first rank does."""
        if self.size == 1:
            return
        content = b"" if body is None else json.dumps(body).encode()
        self._send(torch.tensor([word, len(content)]))
        if content:
            self._send(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def hear(self) -> tuple[Word, Any]:
        """Wait for the first rank's next word; all but the first do."""
        head = torch.zeros(2, dtype=torch.int64)
        self._send(head)
        word, length = head.tolist()
        if not length:
            return Word(word), None
        content = torch.zeros(length, dtype=torch.uint8)
        self._send(content)
        return Word(word), json.loads(content.numpy().tobytes())

    def stop(self, should_stop: Callable[[], bool]) -> bool:
        """Whether all ranks stop here. Only the first asks; if asking fails, all stop."""
        if self.size == 1:
            return should_stop()
        if not self.first:
            word, _ = self.hear()
            assert word in (Word.GO, Word.STOP), word
            return word is Word.STOP
        ended = True
        try:
            ended = should_stop()
        finally:
            self.tell(Word.STOP if ended else Word.GO)
        return ended

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace float32 tensors by their means over the ranks; every rank gets the same bits.

        A value that is not finite on one rank is not finite on any.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum over the ranks of each number."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._words)
        return [float(value) for value in sums]

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the first rank's; names and order are the same on every rank."""
        if self.size == 1:
            return
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, src=0, group=self._words if whole.is_cpu else None)
            if whole is not tensor:
                tensor.copy_(whole)

    def _send(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, src=0, group=self._words)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
