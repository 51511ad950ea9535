"""The network: the nanochat architecture of October 2025, whose d20 has 560,988,160 parameters.

Shape suffixes: B batch, T time (sequence), C width, H query heads, K key and value heads, D head
size, V vocabulary, N tokens (B times T). Parameter names are nanochat's, so that an export renames
nothing. Weights are float32; products are in the dtype of the activations, `GPT.compute_dtype`.
"""
# ruff: noqa: N803, N806, N815

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uncurtail.lm.attention import causal_attention
from uncurtail.lm.headloss import SOFTCAP, head_loss, head_losses
from uncurtail.lm.sections import ModelSection

__all__ = ["GPT", "ModelSection", "initial_weights", "rotary_tables", "rotate"]

ROTARY_BASE = 10_000.0
# Per layer: what the residual stream is multiplied with, how much of the embedding is added to it
SCALARS = {"resid_lambdas": 1.0, "x0_lambdas": 0.0}
NORM_EPS = 2.0**-23  # torch's own for float32; written down because an export must name it


class Linear(nn.Linear):
    """A float32 matrix without bias, applied in the dtype of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Multiply the last dimension; (..., inputs) -> (..., outputs)."""
        return F.linear(input, self.weight.to(input.dtype))


class Attention(nn.Module):
    """Causal self-attention: rotary positions, then normalised queries and keys."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.heads, self.head_size = section.heads, section.head_size
        self.kv_heads = section.kv_heads or section.heads
        self.c_q = Linear(section.width, section.width)
        self.c_k = Linear(section.width, self.kv_heads * self.head_size)
        self.c_v = Linear(section.width, self.kv_heads * self.head_size)
        self.c_proj = Linear(section.width, section.width)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Each position attends to itself and the past; (B, T, C) -> (B, T, C)."""
        B, T, C = x_BTC.shape
        q_BHTD = self.c_q(x_BTC).view(B, T, self.heads, self.head_size).transpose(1, 2)
        k_BKTD = self.c_k(x_BTC).view(B, T, self.kv_heads, self.head_size).transpose(1, 2)
        v_BKTD = self.c_v(x_BTC).view(B, T, self.kv_heads, self.head_size).transpose(1, 2)
        q_BHTD = rms_norm(rotate(q_BHTD, cos_TD, sin_TD))
        k_BKTD = rms_norm(rotate(k_BKTD, cos_TD, sin_TD))
        y_BHTD = causal_attention(q_BHTD, k_BKTD, v_BKTD)
        y_BTC: Tensor = self.c_proj(y_BHTD.transpose(1, 2).reshape(B, T, C))
        return y_BTC


class MLP(nn.Module):
    """Four times wider, squared ReLU."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.c_fc = Linear(section.width, 4 * section.width)
        self.c_proj = Linear(4 * section.width, section.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Position by position; (B, T, C) -> (B, T, C)."""
        y_BTC: Tensor = self.c_proj(F.relu(self.c_fc(x_BTC)).square())
        return y_BTC


class Block(nn.Module):
    """One layer: normalise, attend, add; normalise, transform, add."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.attn = Attention(section)
        self.mlp = MLP(section)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x_BTC = x_BTC + self.attn(rms_norm(x_BTC), cos_TD, sin_TD)
        y_BTC: Tensor = x_BTC + self.mlp(rms_norm(x_BTC))
        return y_BTC


class Trunk(nn.Module):
    """Everything below the head; a module of its own only for the sake of nanochat's names."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.wte = nn.Embedding(section.vocab_size, section.width)
        self.h = nn.ModuleList(Block(section) for _ in range(section.depth))


class GPT(nn.Module):
    """A decoder without biases and without norm parameters; input and output matrices untied.

    The parameters `resid_lambdas` and `x0_lambdas` are None without `residual_scalars`.
    """

    cos_TD: Tensor
    sin_TD: Tensor
    resid_lambdas: nn.Parameter | None
    x0_lambdas: nn.Parameter | None

    def __init__(self, section: ModelSection, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.section, self.compute_dtype = section, compute_dtype
        self.checkpoint_activations = False  # computes each block again in the backward pass
        for name, start in SCALARS.items():
            scalars = nn.Parameter(torch.full((section.depth,), start))
            self.register_parameter(name, scalars if section.residual_scalars else None)
        self.transformer = Trunk(section)
        self.lm_head = Linear(section.width, section.vocab_size)
        cos_TD, sin_TD = rotary_tables(section.sequence_length, section.head_size)
        self.register_buffer("cos_TD", cos_TD.to(compute_dtype), persistent=False)
        self.register_buffer("sin_TD", sin_TD.to(compute_dtype), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Next-token logits, float32 within +-15; (B, T) integers -> (B, T, V).

        T may be shorter than the section's sequence length, not longer.
        """
        logits_BTV: Tensor = self.lm_head(self.features(tokens_BT)).float()
        return SOFTCAP * torch.tanh(logits_BTV / SOFTCAP)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy, nats per token, a float32 scalar; never holds all the logits."""
        x_NC = self.features(tokens_BT).flatten(0, 1)
        return head_loss(x_NC, self.lm_head.weight, targets_BT.flatten())

    def losses(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """What `loss` is the mean of, a float32 for each of B T tokens; without gradients."""
        with torch.no_grad():
            x_NC = self.features(tokens_BT).flatten(0, 1)
            return head_losses(x_NC, self.lm_head.weight, targets_BT.flatten())

    def features(self, tokens_BT: Tensor) -> Tensor:
        """What the head sees, normalised, in `compute_dtype`; (B, T) -> (B, T, C)."""
        T = tokens_BT.shape[1]
        cos_TD, sin_TD = self.cos_TD[:T], self.sin_TD[:T]
        x_BTC = rms_norm(self.transformer.wte(tokens_BT)).to(self.compute_dtype)
        first_BTC = x_BTC
        for layer, block in enumerate(self.transformer.h):
            if self.resid_lambdas is not None and self.x0_lambdas is not None:
                x_BTC = self.resid_lambdas[layer] * x_BTC + self.x0_lambdas[layer] * first_BTC
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, cos_TD, sin_TD, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, cos_TD, sin_TD)
        return rms_norm(x_BTC)


def rms_norm(x: Tensor) -> Tensor:
    """Scale the last dimension to a root mean square of one; no parameters."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def rotary_tables(length: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each position's angles, two float32 tensors (length, head_size / 2)."""
    frequency_D = ROTARY_BASE ** -(torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle_TD = torch.outer(torch.arange(length, dtype=torch.float32), frequency_D)
    return angle_TD.cos(), angle_TD.sin()


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of features by its position's angle; keeps shape and dtype.

    The direction is nanochat's (clockwise), which a checkpoint exchanged with it depends on.
    """
    left, right = x_BHTD.chunk(2, dim=-1)
    return torch.cat((left * cos_TD + right * sin_TD, right * cos_TD - left * sin_TD), dim=-1)


def initial_weights(section: ModelSection, seed: int) -> dict[str, Tensor]:
    """The model at step 0, float32 on the CPU, a pure function of its arguments.

    The head and every projection back into the residual stream start at zero, so each block is
    the identity and the first loss is ln(vocab_size) exactly.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GPT(section).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        weight = torch.full(shape, SCALARS.get(name, 0.0))
        if name.endswith("wte.weight"):
            weight.normal_(generator=generator)
        elif name not in SCALARS and not name.endswith(("c_proj.weight", "lm_head.weight")):
            rows, columns = shape
            # spectral norm about one whatever the aspect ratio (2310.17813), as nanochat
            std = min(1.0, math.sqrt(rows / columns)) / math.sqrt(columns)
            weight.normal_(std=std, generator=generator)
        weights[name] = weight
    return weights
