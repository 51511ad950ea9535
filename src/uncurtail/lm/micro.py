"""How many sequences of a step a rank takes at a time: as many as its memory allows."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from uncurtail.lm.sections import TrainSection

# Where to start: 32 sequences of d20, which nanochat takes on GPUs of 80 GB; not measured here
MICRO_TOKENS = 65_536

Result = TypeVar("Result")

log = logging.getLogger("uncurtail.train")


class Micro:
    """A rank's share of a step, in equal pieces of `size` sequences, one after the other.

    The gradients are the same whatever the size, but for rounding. Without `train.micro_sequences`
    it starts at `MICRO_TOKENS` and falls whenever memory is too small: each rank's by itself.
    """

    def __init__(self, train: TrainSection, sequence_length: int, ranks: int) -> None:
        """Work out the share.

        Raises:
            ValueError: The ranks cannot have equal shares of a step, or `micro_sequences` does not
                divide them.
        """
        self.share, rest = divmod(train.batch_sequences, ranks)
        if rest:
            raise ValueError(
                f"batch_sequences {train.batch_sequences} cannot be shared by {ranks} ranks: "
                "choose a multiple of the ranks"
            )
        given = train.micro_sequences
        self.size = (
            _divisor(self.share, max(1, MICRO_TOKENS // sequence_length))
            if given is None
            else min(self.share, given)
        )
        if self.share % self.size:
            raise ValueError(
                f"micro_sequences {self.size} does not divide the {self.share} sequences of each "
                f"of the {ranks} ranks"
            )
        self.first_size = self.size  # the same in all ranks
        self._fixed = given is not None
        self._thrifty = train.checkpoint_activations

    @property
    def count(self) -> int:
        """Pieces of a step."""
        return self.share // self.size

    def pieces(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch, `size` of its sequences at a time."""
        inputs, targets = batch
        for first in range(0, len(inputs), self.size):
            yield inputs[first : first + self.size], targets[first : first + self.size]

    def remedy(self) -> str:
        """What to do where memory is too small for it."""
        if self._fixed and self.size > 1:
            return "leave train.micro_sequences out, or lower it"
        if not self._thrifty:
            return "set train.checkpoint_activations"
        return "train a smaller model or shorter sequences, or share a step by more ranks or GPUs"

    def fitting(self, work: Callable[[], Result]) -> Result:
        """What `work`, which keeps to `size`, gives; begun anew with a smaller one if need be.

        Raises:
            torch.OutOfMemoryError: One sequence is too much, or the size was given.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self._fixed or self.size == 1:
                    raise
                was, self.size = self.size, _divisor(self.share, self.size // 2)
            # only now has the traceback let go of what the work held
            log.warning("no memory for %d sequences at a time: %d from now on", was, self.size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is not above `most`."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
