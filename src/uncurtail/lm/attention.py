"""Causal attention; of short sequences in bfloat16 on a CPU, written as products of blocks.

torch's fused kernel never holds the scores, which pays for long sequences and on GPUs. On a CPU it
is slow in it (torch 2.13, AVX512-BF16, 2,048 tokens in sequences of 256, forward and backward:
15.2 ms eager, 13.2 ms compiled; the blocks here 12.0 and 5.8 ms), up to about 1,024 tokens.
Suffixes: B batch, H heads, T time, D head size, N all heads of a batch (B times H), Q queries of
one block, K keys up to the last of these queries.
"""
# ruff: noqa: N803, N806

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries at a time: 64 and 256 are slower; what lies after a block is never computed
LONGEST = 512  # tokens; beyond it, eager, torch's kernel is as fast and holds less


def causal_attention(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
    """Each position's mean of the values up to it, weighted by its scores; (B, H, T, D).

    Queries and keys must be normalised: no row's root mean square above one. There may be fewer
    heads of keys and values, K, than of queries: each serves H / K of them, side by side.
    """
    B, H, T, D = q_BHTD.shape
    grouped = k_BKTD.shape[1] != H
    fused = q_BHTD.device.type != "cpu" or q_BHTD.dtype != torch.bfloat16 or T > LONGEST
    if fused or grouped:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=grouped
        )
    heads = [x.reshape(B * H, T, D) for x in (q_BHTD, k_BKTD, v_BKTD)]
    y_NTD: Tensor = _Blocks.apply(*heads)  # type: ignore[no-untyped-call]
    return y_NTD.view(B, H, T, D)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends."""
    return [(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]


def _weights(q_NQD: Tensor, k_NKD: Tensor) -> Tensor:
    """What each query of a block makes of each key up to its last one; rows sum to one."""
    Q, K, D = q_NQD.shape[1], k_NKD.shape[1], q_NQD.shape[2]
    # no maximum is subtracted: of normalised rows no score exceeds sqrt(D), 11.3 at 128
    odds_NQK = (q_NQD @ k_NKD.mT).float().mul_(D**-0.5).exp_().tril_(K - Q)
    return odds_NQK.div_(odds_NQK.sum(dim=2, keepdim=True)).to(q_NQD.dtype)


class _Blocks(torch.autograd.Function):
    """Keeps the weights, T^2 / 2 of each head, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q_NTD: Tensor, k_NTD: Tensor, v_NTD: Tensor) -> Tensor:
        """Values by weights; all (N, T, D)."""
        y_NTD = torch.empty_like(q_NTD)
        kept = []
        for first, last in _blocks(q_NTD.shape[1]):
            weights_NQK = _weights(q_NTD[:, first:last], k_NTD[:, :last])
            y_NTD[:, first:last] = weights_NQK @ v_NTD[:, :last]
            kept.append(weights_NQK)
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, y_NTD, *kept)
        return y_NTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Through softmax: weight * (its own gradient - the mean of its row's)."""
        (y_gradient_NTD,) = gradients
        q_NTD, k_NTD, v_NTD, y_NTD, *kept = ctx.saved_tensors
        mean_NT1 = (y_gradient_NTD.float() * y_NTD.float()).sum(dim=2, keepdim=True)
        q_gradient_NTD = torch.empty_like(q_NTD)
        # sums over blocks, so in float32
        k_gradient_NTD, v_gradient_NTD = (
            torch.zeros_like(x, dtype=torch.float32) for x in (k_NTD, v_NTD)
        )
        scale = q_NTD.shape[2] ** -0.5
        for (first, last), weights_NQK in zip(_blocks(q_NTD.shape[1]), kept, strict=True):
            given_NQD = y_gradient_NTD[:, first:last]
            slope_NQK = (given_NQD @ v_NTD[:, :last].mT).float().sub_(mean_NT1[:, first:last])
            slope_NQK = slope_NQK.mul_(weights_NQK).mul_(scale).to(q_NTD.dtype)
            q_gradient_NTD[:, first:last] = slope_NQK @ k_NTD[:, :last]
            k_gradient_NTD[:, :last] += slope_NQK.mT @ q_NTD[:, first:last]
            v_gradient_NTD[:, :last] += weights_NQK.mT @ given_NQD
        return q_gradient_NTD, k_gradient_NTD.to(k_NTD.dtype), v_gradient_NTD.to(v_NTD.dtype)
