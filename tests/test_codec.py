import pytest
import safetensors.torch
import torch

from uncurtail.sync.codec import BadUpdate, decode_delta, delta_norm, encode_delta

BASE = {"a": torch.linspace(-1, 1, 12).view(3, 4), "b": torch.ones(2)}
LOCAL = {"a": BASE["a"] * 1.25, "b": torch.tensor([1.5, 0.0])}


def test_float32_delta_survives_the_wire_exactly():
    delta = decode_delta(encode_delta(BASE, LOCAL, "fp32"), BASE)
    assert all(torch.equal(delta[n], LOCAL[n] - BASE[n]) for n in BASE)


def test_bfloat16_delta_is_half_the_size_and_close():
    base, local = ({"a": torch.randn(100, 100)} for _ in range(2))
    small, large = encode_delta(base, local), encode_delta(base, local, "fp32")
    assert len(small) < 0.51 * len(large)
    delta = decode_delta(small, base)
    torch.testing.assert_close(delta["a"].float(), local["a"] - base["a"], rtol=0.004, atol=0)


def test_equal_deltas_give_equal_bytes():
    assert encode_delta(BASE, LOCAL) == encode_delta(
        dict(reversed(BASE.items())), dict(reversed(LOCAL.items()))
    )


def wire(**tensors):
    return safetensors.torch.save(tensors)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "undecodable"),
        (b"\x80\x04pickle", "undecodable"),
        (wire(a=torch.ones(3, 4)), "wrong names"),
        (wire(a=torch.ones(3, 4), b=torch.ones(2), c=torch.ones(1)), "wrong names"),
        (wire(a=torch.ones(4, 3), b=torch.ones(2)), "wrong shape"),
        (wire(a=torch.ones(3, 4), b=torch.tensor([1.0, float("nan")])), "not finite"),
        (wire(a=torch.full((3, 4), float("inf")), b=torch.ones(2)), "not finite"),
        (wire(a=torch.ones(3, 4), b=torch.ones(2, dtype=torch.int64)), "wrong dtype"),
        (encode_delta(BASE, LOCAL)[:-1], "undecodable"),
    ],
    ids=["empty", "pickle", "missing", "extra", "shape", "nan", "inf", "integers", "cut-off"],
)
def test_a_bad_update_is_refused_with_its_reason(content, reason):
    with pytest.raises(BadUpdate, match=reason) as caught:
        decode_delta(content, BASE)
    assert caught.value.reason == str(caught.value)


def test_encoding_two_different_models_is_an_error():
    with pytest.raises(ValueError, match="not one model"):
        encode_delta(BASE, {"a": BASE["a"]})


def test_norm_is_euclidean_over_all_tensors():
    assert delta_norm({"a": torch.tensor([[3.0]]), "b": torch.tensor([4.0])}) == 5.0
    assert delta_norm({}) == 0.0
