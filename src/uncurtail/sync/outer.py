"""The outer optimizer: what a round's mean delta does to the global model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from uncurtail.sync.sections import OuterSection

__all__ = ["OuterSection", "outer_step"]

Weights = dict[str, Tensor]


@torch.no_grad()
def outer_step(
    section: OuterSection,
    weights: Mapping[str, Tensor],
    mean_delta: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor] | None,
) -> tuple[Weights, Weights | None]:
    """The next global model and outer momentum; nothing given is changed.

    "plain" is weights + mean delta. "nesterov" is `torch.optim.SGD(nesterov=True)` with minus the
    mean delta as gradient, as in DiLoCo (2311.08105); its first step takes `momentum` None.

    Raises:
        ValueError: Names differ.
    """
    if weights.keys() != mean_delta.keys():
        raise ValueError(f"not one model: {sorted(weights.keys() ^ mean_delta.keys())[:3]} differ")
    if section.kind == "plain":
        return {name: value + mean_delta[name] for name, value in weights.items()}, None
    velocity = {
        name: delta.clone() if momentum is None else section.momentum * momentum[name] + delta
        for name, delta in mean_delta.items()
    }
    moved = {
        name: value + section.lr * (mean_delta[name] + section.momentum * velocity[name])
        for name, value in weights.items()
    }
    return moved, velocity
