import json

import pytest
import safetensors.torch
import torch

from uncurtail.lm.checkpoint import decode_weights, encode_weights

WEIGHTS = {"a": torch.randn(3, 4), "b": torch.randn(5)}


def test_weights_survive_exactly():
    found = decode_weights(encode_weights(WEIGHTS))
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[n], WEIGHTS[n]) for n in WEIGHTS)


def test_equal_weights_give_equal_bytes():
    once = encode_weights(WEIGHTS)
    assert all(encode_weights(dict(reversed(WEIGHTS.items()))) == once for _ in range(5))


def headed(**header):
    return safetensors.torch.save(WEIGHTS, metadata={"uncurtail": json.dumps(header)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (headed(architecture="llama", version=1), "of architecture 'llama'"),
        (headed(architecture="nanochat-2025-10", version=9), "version 9"),
        (safetensors.torch.save(WEIGHTS), "of architecture None"),
        (encode_weights(WEIGHTS)[:-4], "damaged checkpoint"),
        (b"", "not a safetensors file"),
        (b"\x80\x04\x95 a pickle, to be sure", "not a safetensors file"),
    ],
    ids=["other-architecture", "newer", "foreign", "cut-off", "empty", "pickle"],
)
def test_what_is_no_checkpoint_of_ours_is_refused_in_words(content, reason):
    with pytest.raises(ValueError, match=reason):
        decode_weights(content)
