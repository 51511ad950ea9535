"""A model's weights as bytes: safetensors with a header that says which architecture they are of.

Equal weights give equal bytes, so a checkpoint can be named by its hash.
"""

import json
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

ARCHITECTURE = "nanochat-2025-10"
VERSION = 1
_KEY = "uncurtail"  # one key only: with several, safetensors writes them in random order


def encode_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Weights by parameter name as one safetensors file."""
    header = json.dumps({"architecture": ARCHITECTURE, "version": VERSION}, sort_keys=True)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    return safetensors.torch.save(tensors, metadata={_KEY: header})


def decode_weights(content: bytes) -> dict[str, Tensor]:
    """What `encode_weights` was given.

    Raises:
        ValueError: Not a checkpoint, or one of another architecture or a newer version.
    """
    header = _header(content)
    if header.get("architecture") != ARCHITECTURE:
        raise ValueError(
            f"checkpoint of architecture {header.get('architecture')!r}, not {ARCHITECTURE!r}"
        )
    if header.get("version") != VERSION:
        raise ValueError(
            f"checkpoint of version {header.get('version')!r}, this uncurtail reads {VERSION}"
        )
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"damaged checkpoint: {error!r}") from error


def _header(content: bytes) -> Mapping[str, object]:
    """Our entry in a safetensors file's JSON header, which follows its length in 8 bytes."""
    header: object
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        header = json.loads(metadata.get(_KEY, "{}"))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError("not a safetensors file") from error
    if not isinstance(header, dict):
        raise ValueError("not a checkpoint of uncurtail: its header is no table")
    return header
