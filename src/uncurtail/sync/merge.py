"""The mean of the sites' deltas, weighted by tokens, folded in as they arrive."""

from collections.abc import Mapping

import torch
from torch import Tensor

CHUNK = 1 << 20  # values converted to float32 at a time: 4 MB, whatever the model's size


class StreamingMean:
    """One float32 model's memory, however many deltas; their order matters only in rounding."""

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self.tokens = 0

    def fold(self, delta: Mapping[str, Tensor], weight_tokens: int) -> None:
        """Take in one delta that `weight_tokens` tokens of training made.

        Raises:
            ValueError: No tokens, or names or shapes of another model; the mean is unchanged.
        """
        if weight_tokens <= 0:
            raise ValueError(f"a delta of {weight_tokens} tokens has no weight")
        if not self._mean:
            self._mean = {name: torch.zeros(value.shape) for name, value in delta.items()}
        if {n: v.shape for n, v in delta.items()} != {n: v.shape for n, v in self._mean.items()}:
            raise ValueError("delta of another model: names or shapes differ")
        self.tokens += weight_tokens
        # a running mean, not a sum: values stay at a delta's size, where float32 is exact enough
        share = weight_tokens / self.tokens
        for name, mean in self._mean.items():
            flat_mean, flat_delta = mean.view(-1), delta[name].reshape(-1)
            for first in range(0, flat_mean.numel(), CHUNK):
                piece = flat_delta[first : first + CHUNK].float()
                flat_mean[first : first + CHUNK].lerp_(piece, share)

    def mean(self) -> dict[str, Tensor] | None:
        """The weighted mean in float32 (live: fold no more after), or None if there was nothing."""
        return self._mean or None
