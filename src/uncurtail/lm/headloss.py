"""Head, softcap and cross-entropy as one operation, a few tokens at a time.

The logits of a batch are by far its largest tensor: 34 MB for 2,048 tokens and 4,096 words. In
slices that fit the cache, with the gradient made on the spot, they are never written to memory.
Suffixes: N tokens, C width, V vocabulary, M tokens of one slice.
"""
# ruff: noqa: N803, N806

from typing import Any

import torch
from torch import Tensor

SOFTCAP = 15.0  # logits saturate at +-15, as in nanochat (and Gemma 2): no run-away logits
SLICE_ELEMENTS_CPU = 1 << 20  # 4 MB of float32: stays in the cache
SLICE_ELEMENTS_GPU = 1 << 28  # 1 GB: large enough to fill the device


def head_loss(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of softcapped logits; a float32 scalar, differentiable once.

    Args:
        x_NC: Features, float32 or bfloat16; products are in this dtype.
        weight_VC: The head's matrix, float32; so is its gradient.
        targets_N: The words that came, int64 below V.
    """
    loss: Tensor = _HeadLoss.apply(x_NC, weight_VC, targets_N)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def head_losses(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    """What `head_loss` is the mean of, float32 for each token; without gradients."""
    matrix_VC = weight_VC.to(x_NC.dtype)
    size = _slice_tokens(weight_VC)
    nats = [
        _odds(x_NC[first : first + size], matrix_VC, targets_N[first : first + size, None])[-1]
        for first in range(0, x_NC.shape[0], size)
    ]
    return torch.cat(nats).squeeze(1)


def _slice_tokens(weight_VC: Tensor) -> int:
    """How many tokens at a time, for a head of this size on this device."""
    elements = SLICE_ELEMENTS_CPU if weight_VC.device.type == "cpu" else SLICE_ELEMENTS_GPU
    return max(1, elements // weight_VC.shape[0])


def _odds(
    x_MC: Tensor, matrix_VC: Tensor, targets_M1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a slice: each logit's tanh, each word's odds, their sum, and the target's loss in nats."""
    # tanh(z) = 2 sigmoid(2 z) - 1, exact at zero: a quarter of tanh's time on a CPU, eager
    capped_MV = (x_MC @ matrix_VC.T).float().mul_(2 / SOFTCAP).sigmoid_().mul_(2).sub_(1)
    # no maximum is subtracted: e^15 times any vocabulary is far below float32's largest
    odds_MV = (capped_MV * SOFTCAP).exp_()
    total_M1 = odds_MV.sum(dim=1, keepdim=True)
    nats_M1 = total_M1.log() - SOFTCAP * capped_MV.gather(1, targets_M1)
    return capped_MV, odds_MV, total_M1, nats_M1


class _HeadLoss(torch.autograd.Function):
    """The gradients are linear in the incoming one, so the forward pass can make them."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        """Loss, with both gradients kept for the backward pass."""
        N = x_NC.shape[0]
        matrix_VC = weight_VC.to(x_NC.dtype)
        x_gradient_NC = torch.empty_like(x_NC)
        weight_gradient_VC = torch.zeros_like(weight_VC)
        nats = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        size = _slice_tokens(weight_VC)
        for first in range(0, N, size):
            x_MC, targets_M1 = x_NC[first : first + size], targets_N[first : first + size, None]
            capped_MV, odds_MV, total_M1, nats_M1 = _odds(x_MC, matrix_VC, targets_M1)
            nats += nats_M1.sum()
            slope_MV = odds_MV.div_(total_M1 * N)  # probability / N
            slope_MV.scatter_add_(1, targets_M1, torch.full_like(total_M1, -1.0 / N))
            slope_MV.mul_(capped_MV.square_().neg_().add_(1.0))  # tanh' = 1 - tanh^2
            slope_MV = slope_MV.to(x_NC.dtype)
            x_gradient_NC[first : first + size] = slope_MV @ matrix_VC
            weight_gradient_VC += slope_MV.T @ x_MC
        ctx.save_for_backward(x_gradient_NC, weight_gradient_VC)
        return nats / N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale what the forward pass made."""
        (gradient,) = gradients
        x_gradient_NC, weight_gradient_VC = ctx.saved_tensors
        # 1 / micro-batches rounded to bfloat16 would be up to 0.2 % off, in one direction
        x_scaled_NC = (x_gradient_NC.float() * gradient).to(x_gradient_NC.dtype)
        return x_scaled_NC, weight_gradient_VC * gradient, None
