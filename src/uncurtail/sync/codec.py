"""A site's delta on the wire: safetensors in, checked tensors out.

A delta is local - base, by parameter name: what the site's steps added to the model.
"""

import math
from collections.abc import Mapping
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class BadUpdate(ValueError):  # noqa: N818 - a verdict on the sender, in the words of the design
    """An update that must not touch the model; `reason` goes into the record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def encode_delta(
    base: Mapping[str, Tensor],
    local: Mapping[str, Tensor],
    dtype: Literal["bf16", "fp32"] = "bf16",
) -> bytes:
    """Local - base, subtracted in float32, then rounded to `dtype`; both hold the same names.

    Raises:
        ValueError: Names differ.
    """
    if base.keys() != local.keys():
        raise ValueError(f"not one model: {sorted(base.keys() ^ local.keys())[:3]} differ")
    delta = {
        name: (local[name].detach().float() - weight.detach().float()).to(DTYPES[dtype]).cpu()
        for name, weight in base.items()
    }
    return safetensors.torch.save(delta)


def decode_delta(content: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The delta, in the dtype it was sent in, if it fits the model `like`.

    Raises:
        BadUpdate: Not safetensors; another model's names or shapes; another dtype; a value that
            is not finite.
    """
    try:
        delta = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadUpdate(f"undecodable: {error}") from error
    if delta.keys() != like.keys():
        raise BadUpdate(f"wrong names: {sorted(delta.keys() ^ like.keys())[:3]}")
    for name, value in delta.items():
        if value.shape != like[name].shape:
            raise BadUpdate(
                f"wrong shape: {name} is {tuple(value.shape)}, not {tuple(like[name].shape)}"
            )
        if value.dtype not in DTYPES.values():
            raise BadUpdate(f"wrong dtype: {name} is {value.dtype}")
        if not bool(torch.isfinite(value).all()):
            raise BadUpdate(f"not finite: {name}")
    return delta


def delta_norm(delta: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all values of all tensors."""
    norms = (float(torch.linalg.vector_norm(v, dtype=torch.float32)) for v in delta.values())
    return math.sqrt(sum(norm * norm for norm in norms))
