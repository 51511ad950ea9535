import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from uncurtail.lm.headloss import head_loss, head_losses
from uncurtail.lm.model import GPT, ModelSection, initial_weights, rotary_tables, rotate

SMALL = ModelSection(depth=2, vocab_size=300, sequence_length=32)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model_of(section, seed=0, scale=1.0):
    """A model whose zero-initialised matrices are not zero, so that every part matters."""
    model = GPT(section)
    weights = initial_weights(section, seed)
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        if not weight.any():
            weight.normal_(std=scale / math.sqrt(weight.shape[-1]), generator=generator)
    model.load_state_dict(weights)
    return model


def test_depth_20_has_the_parameters_of_nanochat_d20():
    with torch.device("meta"):
        model = GPT(ModelSection(depth=20, vocab_size=65536, sequence_length=2048))
    assert sum(p.numel() for p in model.parameters()) == 560_988_160


def test_first_loss_is_the_logarithm_of_the_vocabulary():
    model = GPT(SMALL)
    model.load_state_dict(initial_weights(SMALL, seed=3))
    tokens = torch.randint(300, (2, 32))
    assert model.loss(tokens, tokens).item() == pytest.approx(math.log(300), abs=1e-5)


def test_initial_weights_are_a_function_of_the_seed_alone():
    first, again, other = (initial_weights(SMALL, seed) for seed in (5, 5, 6))
    name = "transformer.h.0.attn.c_q.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    assert not first["lm_head.weight"].any()
    assert not first["transformer.h.1.mlp.c_proj.weight"].any()


def test_a_later_token_changes_no_earlier_logit():
    model = model_of(SMALL)
    tokens = torch.randint(300, (1, 32))
    changed = tokens.clone()
    changed[0, 20] = (tokens[0, 20] + 1) % 300
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_logits_are_float32_and_capped_at_15():
    model = model_of(SMALL, scale=100.0)
    logits = model(torch.randint(300, (2, 16)))
    assert logits.shape == (2, 16, 300)
    assert logits.dtype == torch.float32
    assert 10 < float(logits.detach().abs().max()) <= 15


def test_sliced_loss_and_its_gradients_equal_plain_cross_entropy(monkeypatch):
    monkeypatch.setattr("uncurtail.lm.headloss.SLICE_ELEMENTS_CPU", 7 * 50)  # uneven slices
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(50, (40,), generator=generator)
    plain = F.cross_entropy(15 * torch.tanh(x @ weight.T / 15), targets)
    wanted = torch.autograd.grad(3 * plain, (x, weight))
    loss = head_loss(x, weight, targets)
    found = torch.autograd.grad(3 * loss, (x, weight))
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found, wanted)
    each = F.cross_entropy(15 * torch.tanh(x @ weight.T / 15), targets, reduction="none")
    torch.testing.assert_close(head_losses(x, weight, targets), each.detach())


def test_a_bfloat16_gradient_is_scaled_by_what_it_is_to_be_scaled_by():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(50, 16, generator=generator)
    loss = head_loss(x, weight, torch.randint(50, (40,), generator=generator))
    (whole,) = torch.autograd.grad(loss, x, retain_graph=True)
    (third,) = torch.autograd.grad(loss / 3, x)
    assert torch.equal(third, (whole.float() / 3).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_of_each_token_is_that_of_its_logits_and_never_needs_them_all(dtype):
    model = GPT(SMALL, dtype)
    model.load_state_dict(model_of(SMALL).state_dict())
    tokens, targets = torch.randint(300, (2, 2, 32))
    plain = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="none")
    model.register_forward_pre_hook(no_logits)
    losses = model.losses(tokens, targets)
    torch.testing.assert_close(losses, plain.detach())
    assert not losses.requires_grad
    torch.testing.assert_close(losses.mean(), model.loss(tokens, targets).detach())


def no_logits(*_):
    raise AssertionError("the logits of a whole batch")


def test_the_training_loss_is_that_of_the_logits():
    model = model_of(SMALL)
    tokens, targets = torch.randint(300, (2, 2, 32))
    plain = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(tokens, targets), plain)


def test_bfloat16_loss_is_close_to_float32():
    exact, fast = model_of(SMALL), GPT(SMALL, torch.bfloat16)
    fast.load_state_dict(exact.state_dict())
    tokens, targets = torch.randint(300, (2, 4, 32))
    loss = fast.loss(tokens, targets)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        float(exact.loss(tokens, targets).detach()), rel=0.01
    )
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fast.parameters())


def test_rotary_scores_depend_on_the_distance_alone():
    cos, sin = rotary_tables(16, 8)
    q, k = torch.randn(2, 8).unbind()
    turned_q, turned_k = (rotate(v.expand(1, 1, 16, 8), cos, sin)[0, 0] for v in (q, k))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[5, 2], scores[13, 10])
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(16))


def test_grouped_queries_equal_full_attention_with_repeated_keys():
    full = ModelSection(depth=4, vocab_size=300, sequence_length=16)
    grouped = full.model_copy(update={"kv_heads": 1})
    small, large = model_of(grouped), GPT(full)
    weights = small.state_dict()
    for name, weight in weights.items():
        if name.endswith(("c_k.weight", "c_v.weight")):
            weights[name] = weight.repeat(2, 1)
    large.load_state_dict(weights)
    tokens = torch.randint(300, (2, 16))
    torch.testing.assert_close(small(tokens), large(tokens), atol=1e-5, rtol=1e-4)


SCALED = SMALL.model_copy(update={"residual_scalars": True})


def test_residual_scalars_begin_as_the_model_without_them():
    plain, scaled = model_of(SMALL), GPT(SCALED)
    start = initial_weights(SCALED, 0)
    extra = {name: weight for name, weight in start.items() if name not in plain.state_dict()}
    assert {name: weight.tolist() for name, weight in extra.items()} == {
        "resid_lambdas": [1.0, 1.0],
        "x0_lambdas": [0.0, 0.0],
    }
    assert all(torch.equal(start[n], w) for n, w in initial_weights(SMALL, 0).items())
    scaled.load_state_dict({**plain.state_dict(), **extra})
    tokens = torch.randint(300, (2, 16))
    torch.testing.assert_close(scaled(tokens), plain(tokens))


def test_residual_scalars_weigh_the_stream_and_the_embedding():
    model = model_of(SCALED)
    model.resid_lambdas.data.copy_(torch.tensor([0.5, 0.25]))
    model.x0_lambdas.data.copy_(torch.tensor([0.0, 2.0]))
    for block in model.transformer.h:  # blocks that add nothing
        block.attn.c_proj.weight.data.zero_()
        block.mlp.c_proj.weight.data.zero_()
    tokens = torch.randint(300, (1, 8))
    wanted = F.rms_norm(model.transformer.wte(tokens), (128,)) * (0.5 * 0.25 + 2.0)
    torch.testing.assert_close(model.features(tokens), F.rms_norm(wanted, (128,)))


def test_layers_computed_again_give_the_same_gradients():
    for section in (SMALL, SCALED):
        plain, frugal = model_of(section), model_of(section)
        frugal.checkpoint_activations = True
        tokens, targets = torch.randint(300, (2, 2, 32))
        for model in (plain, frugal):
            model.loss(tokens, targets).backward()
        for ours, theirs in zip(plain.parameters(), frugal.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("depth", "heads", "head_size"),
    [(1, 1, 64), (2, 1, 128), (3, 2, 96), (4, 2, 128), (20, 10, 128)],
)
def test_heads_share_the_width(depth, heads, head_size):
    section = ModelSection(depth=depth)
    assert (section.heads, section.head_size) == (heads, head_size)


@pytest.mark.parametrize(
    ("bad", "remedy"), [({"depth": 5}, "use depth 6"), ({"kv_heads": 3}, "does not divide")]
)
def test_a_size_that_does_not_fit_is_refused_with_the_remedy(bad, remedy):
    with pytest.raises(ValidationError, match=remedy):
        ModelSection(**bad)
