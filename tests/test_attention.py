import pytest
import torch
import torch.nn.functional as F

from uncurtail.lm.attention import BLOCK, LONGEST, causal_attention
from uncurtail.lm.model import rms_norm


def heads(length, count=2, dtype=torch.bfloat16):
    """Random queries, keys and values, as the model lays them out: (B, T, H, D) transposed."""
    return [
        torch.randn(2, length, count, 64).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]


def answer(attend, q, k, v):
    """Output and gradients of normalised queries and keys, in float64."""
    torch.manual_seed(1)
    out = attend(rms_norm(q), rms_norm(k), v)
    given = torch.randn(out.shape).bfloat16().to(out.dtype)
    gradients = torch.autograd.grad(out, (q, k, v), given)
    return [x.detach().double() for x in (out, *gradients)]


def reference(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("length", [2, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 7, LONGEST])
def test_blocks_are_as_close_to_the_exact_answer_as_torch_is(length):
    torch.manual_seed(0)
    inputs = heads(length)
    exact = answer(reference, *(x.detach().double().requires_grad_() for x in inputs))
    torchs = answer(reference, *inputs)
    ours = answer(causal_attention, *inputs)
    for name, mine, theirs, wanted in zip(("out", "q", "k", "v"), ours, torchs, exact, strict=True):
        assert (mine - wanted).norm() <= 2 * (theirs - wanted).norm(), name
        assert (mine - wanted).norm() <= 0.01 * wanted.norm(), name


def test_a_later_token_changes_nothing_before_it():
    torch.manual_seed(0)
    q, k, v = heads(2 * BLOCK)
    before = causal_attention(rms_norm(q), rms_norm(k), v)
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :, BLOCK + 3 :] += 1
    after = causal_attention(rms_norm(q), rms_norm(k), v)
    assert torch.equal(before[:, :, : BLOCK + 3], after[:, :, : BLOCK + 3])
    assert not torch.equal(before[:, :, BLOCK + 3 :], after[:, :, BLOCK + 3 :])


def test_the_largest_scores_there_can_be_stay_finite():
    one = torch.ones(1, 1, LONGEST, 128, dtype=torch.bfloat16).requires_grad_()
    out = causal_attention(one, one, one)
    (gradient,) = torch.autograd.grad(out.sum(), one)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(out, one, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("length", "dtype", "kv_heads"),
    [(64, torch.float32, 2), (LONGEST + 1, torch.bfloat16, 2), (64, torch.bfloat16, 1)],
    ids=["float32", "long", "grouped"],
)
def test_everything_else_is_torchs_own(length, dtype, kv_heads):
    torch.manual_seed(0)
    q, k, v = heads(length, dtype=dtype)
    k, v = k[:, :kv_heads], v[:, :kv_heads]
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads == 1)
    assert torch.equal(causal_attention(q, k, v), wanted)
