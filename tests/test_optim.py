import math

import pytest
import torch
from torch import nn

from uncurtail.lm.model import GPT, ModelSection, initial_weights
from uncurtail.lm.optim import (
    Muon,
    OptimSection,
    build_optimizers,
    even_out,
    fast_bf16,
    orthogonalize,
    quintics,
)

SECTION = ModelSection(depth=2, vocab_size=300, sequence_length=16)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_model(seed=0):
    model = GPT(SECTION)
    model.load_state_dict(initial_weights(SECTION, seed))
    return model


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def matrices(*shapes):
    return {str(number): nn.Parameter(torch.randn(shape)) for number, shape in enumerate(shapes)}


def muon_of(named, dtype=torch.float32, **options):
    section = OptimSection(**options)
    muon = Muon(named, section, section.weight_decay)
    muon.dtype = dtype
    return muon


def moves_against_torch(dtype, weight_decay):
    """How far four steps of ours and of torch's Muon end apart, over how far they went."""
    ours = matrices((32, 32), (32, 32), (64, 16), (16, 64))
    theirs = {n: nn.Parameter(p.detach().clone()) for n, p in ours.items()}
    muon = muon_of(ours, dtype, weight_decay=weight_decay)
    reference = torch.optim.Muon(theirs.values(), lr=0.02, momentum=0.9, weight_decay=weight_decay)
    start = {n: p.detach().clone() for n, p in ours.items()}
    for _ in range(4):
        for name, parameter in ours.items():
            parameter.grad = torch.randn(parameter.shape)
            theirs[name].grad = parameter.grad.clone()
        muon.step(0.02, 0.9)
        reference.step()
    return max(((p - theirs[n]).norm() / (p - start[n]).norm()).item() for n, p in ours.items())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_batched_muon_follows_torch_muon_to_float32_rounding(weight_decay, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # torch knows bf16 only
    assert moves_against_torch(torch.float32, weight_decay) < 1e-5


def test_batched_muon_in_bfloat16_follows_torch_muon_to_its_rounding():
    assert moves_against_torch(torch.bfloat16, 0.1) < 0.02  # 0.4 % five times in a row


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 48, 16), (2, 16, 48)], ids=str)
@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({}, 0.5, 1.3),
        ({"orthogonalization": "polar-express"}, 0.85, 1.15),
        ({"orthogonalization": "polar-express", "muon_steps": 8}, 0.99, 1.01),
    ],
    ids=["newton-schulz", "polar-express", "polar-express-8"],
)
def test_orthogonalized_matrices_have_singular_values_near_one(shape, options, low, high):
    section = OptimSection(**options)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), section, torch.float32))
    assert values.max().item() < high
    assert (values > low).float().mean().item() > 0.9  # a vanishing one takes more steps


def test_polar_express_approaches_the_polar_factor():
    section = OptimSection(orthogonalization="polar-express", muon_steps=8)
    matrix = torch.randn(1, 12, 20)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, section, torch.float32)
    torch.testing.assert_close(found, left @ right, atol=1e-3, rtol=0)


def with_singular_values(values, rows, columns):
    """Two random matrices with these singular values, float64, and what they are made of."""
    left = torch.linalg.qr(torch.randn(2, rows, len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(2, columns, len(values), dtype=torch.float64)).Q
    return left * values @ right.mT, left, right


def by_singular_values(section, values, left, right):
    """What the polynomials make of a matrix, reckoned on its singular values alone."""
    steps, margin = quintics(section)
    values = values / (values.norm() * margin)
    for a, b, c in steps:
        values = a * values + b * values**3 + c * values**5
    return left * values @ right.mT


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("method", ["newton-schulz", "polar-express"])
@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (24, 96), (96, 24)], ids=str)
def test_products_and_gram_matrices_apply_the_polynomials(shape, method, steps):
    section = OptimSection(orthogonalization=method, muon_steps=steps)
    values = torch.logspace(0, -4, 24, dtype=torch.float64)
    matrices, left, right = with_singular_values(values, *shape)
    found = orthogonalize(matrices, section, torch.float64)
    wanted = by_singular_values(section, values, left, right)
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)


@pytest.mark.parametrize("steps", [5, 6, 12])
@pytest.mark.parametrize(("method", "highest"), [("newton-schulz", 1.25), ("polar-express", 1.2)])
def test_gram_matrices_hold_in_bfloat16_where_singular_values_are_far_apart(method, highest, steps):
    section = OptimSection(orthogonalization=method, muon_steps=steps)
    for last in (0, -2, -4, -6):
        values = torch.logspace(0, last, 128, dtype=torch.float64)
        matrices, left, right = with_singular_values(values, 128, 512)
        found = orthogonalize(matrices, section, torch.bfloat16).double()
        assert torch.linalg.svdvals(found).max().item() < highest
        wanted = by_singular_values(section, values, left, right)
        # what is below bfloat16's rounding at first comes out as anything below one, either way
        assert last < -2 or ((found - wanted).norm() / wanted.norm()).item() < 0.1


@pytest.mark.parametrize("method", ["newton-schulz", "polar-express"])
def test_a_matrix_in_a_batch_moves_as_it_does_alone(method):
    section = OptimSection(orthogonalization=method)
    batch = torch.randn(3, 20, 12)
    whole = orthogonalize(batch, section, torch.float32)
    alone = torch.cat([orthogonalize(one[None], section, torch.float32) for one in batch])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)


def test_a_zero_gradient_stays_zero_and_finite():
    for method in ("newton-schulz", "polar-express"):
        section = OptimSection(orthogonalization=method)
        zero = orthogonalize(torch.zeros(1, 8, 8), section, torch.bfloat16)
        assert not zero.any()
        assert not even_out(zero, torch.zeros(1, 8, 1), 0.95).any()


def test_variance_reduction_by_hand():
    # mean squares of the rows: 16 and 1; running means: 0.9 * 4 + 0.1 * 16 = 5.2 and 3.7
    update = torch.tensor([[[4.0, 4.0], [1.0, -1.0]]])
    squares = torch.full((1, 2, 1), 4.0)
    found = even_out(update, squares, 0.9)
    torch.testing.assert_close(squares.flatten(), torch.tensor([5.2, 3.7]))
    unscaled = update / torch.tensor([[[5.2], [3.7]]]).sqrt()
    torch.testing.assert_close(found, unscaled * (update.norm() / unscaled.norm()))


def test_variance_reduction_evens_out_the_neurons_and_keeps_the_norm():
    for shape, neurons in (((1, 40, 8), (1, 40, 1)), ((1, 8, 40), (1, 1, 40))):
        squares = torch.zeros(neurons)
        strength = torch.rand(neurons) + 0.2
        for _ in range(200):
            update = strength * torch.randn(shape)
            found = even_out(update, squares, 0.95)
            torch.testing.assert_close(found.norm(), update.norm())
        across = 2 if neurons[2] == 1 else 1
        mean = squares.sqrt() / strength
        assert (mean.std() / mean.mean()).item() < 0.2  # it has learnt how strong each neuron is
        before, after = (x.square().mean(dim=across).sqrt() for x in (update, found))
        assert (after.std() / after.mean()).item() < 0.6 * (before.std() / before.mean()).item()


def test_the_first_variance_reduction_knows_no_history_so_neurons_move_alike():
    found = even_out(torch.randn(1, 12, 6), torch.zeros(1, 12, 1), 0.95)
    rows = found.square().mean(dim=2)
    torch.testing.assert_close(rows, rows.mean().expand_as(rows))


def test_variance_reduction_reaches_the_parameters_and_the_state():
    named = matrices((12, 6), (6, 12))
    muon = muon_of(named, variance_reduction=True)
    plain = muon_of(twins := {n: nn.Parameter(p.detach().clone()) for n, p in named.items()})
    for name, parameter in named.items():
        parameter.grad = torch.randn(parameter.shape)
        twins[name].grad = parameter.grad.clone()
    muon.step(0.02, 0.9)
    plain.step(0.02, 0.9)
    assert not torch.allclose(named["0"], twins["0"])
    shapes = {name: tuple(value.shape) for name, value in muon.state().items()}
    assert shapes["squares/0"] == (12, 1)
    assert shapes["squares/1"] == (1, 12)
    assert set(plain.state()) == {"momentum/0", "momentum/1"}


def test_cautious_decay_shrinks_only_where_the_update_does():
    named = matrices((24, 6))
    start, parameter = named["0"].detach().clone(), named["0"]
    plain = nn.Parameter(start.clone())
    parameter.grad = torch.randn(24, 6)
    plain.grad = parameter.grad.clone()
    muon_of(named, weight_decay=0.5, cautious_weight_decay=True).step(0.1, 0.9)
    muon_of({"0": plain}).step(0.1, 0.9)
    update = start - plain.detach()
    decay = torch.where(update * start >= 0, 0.5 * 0.1 * math.sqrt(24 / 6) * start, 0.0)
    torch.testing.assert_close(parameter.detach(), plain.detach() - decay)
    assert 0.2 < decay.bool().float().mean().item() < 0.8


@pytest.mark.parametrize("cautious", [False, True])
def test_the_decay_scale_multiplies_the_decay(cautious):
    named, twin = matrices((8, 8)), matrices((8, 8))
    twin["0"].data.copy_(named["0"])
    gradient = torch.randn(8, 8)
    options = {"cautious_weight_decay": cautious}
    for set_, decay, scale in ((named, 0.4, 0.25), (twin, 0.1, 1.0)):
        set_["0"].grad = gradient.clone()
        muon_of(set_, weight_decay=decay, **options).step(0.1, 0.9, scale)
    torch.testing.assert_close(named["0"], twin["0"])


def test_embedding_and_head_follow_torch_adamw_with_rates_scaled_by_width():
    model, twin = small_model(), small_model()
    section = OptimSection()
    ours = build_optimizers(model, section)
    scale = (128 / 768) ** -0.5
    reference = torch.optim.AdamW(
        [
            {"params": [twin.transformer.wte.weight], "lr": 0.5 * section.embedding_lr * scale},
            {"params": [twin.lm_head.weight], "lr": 0.5 * section.head_lr * scale},
        ],
        betas=section.adam_betas,
        eps=section.adam_eps,
        weight_decay=0.0,
    )
    for seed in range(3):
        set_gradients(model, seed)
        set_gradients(twin, seed)
        ours.step(0.5, 0.95)
        reference.step()
    torch.testing.assert_close(model.transformer.wte.weight, twin.transformer.wte.weight)
    torch.testing.assert_close(model.lm_head.weight, twin.lm_head.weight)


def one_step(section, model=None, batch_tokens=None):
    model = model or small_model()
    optimizers = build_optimizers(model, section, batch_tokens)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    set_gradients(model, 0)
    optimizers.step(1.0, 0.9)
    return {n: p.detach() - before[n] for n, p in model.named_parameters()}


def test_rates_go_with_the_square_root_of_the_batch():
    base, reference = one_step(OptimSection()), OptimSection(reference_batch_tokens=1000)
    assert_moved = torch.testing.assert_close
    for tokens, factor in ((1000, 1.0), (4000, 2.0), (250, 0.5)):
        moved = one_step(reference, batch_tokens=tokens)
        for name in base:
            assert_moved(moved[name], factor * base[name], rtol=1e-3, atol=1e-5)


def test_weight_decay_goes_with_the_inverse_square_of_the_depth():
    at_depth_2 = one_step(OptimSection(weight_decay=0.9))
    from_depth_6 = one_step(OptimSection(weight_decay=0.1, reference_depth=6))
    for name, moved in at_depth_2.items():
        torch.testing.assert_close(moved, from_depth_6[name])


def test_residual_scalars_have_rates_of_their_own():
    section = SECTION.model_copy(update={"residual_scalars": True})
    model = GPT(section)
    model.load_state_dict(initial_weights(section, 0))
    moved = one_step(OptimSection(scalar_lr=0.5), model)
    # Adam's first step is the rate itself, whatever the gradient
    torch.testing.assert_close(moved["x0_lambdas"].abs(), torch.full((2,), 0.5))
    torch.testing.assert_close(
        moved["resid_lambdas"].abs(), torch.full((2,), 0.005), rtol=1e-3, atol=0
    )


def test_a_scale_of_zero_moves_nothing():
    model = small_model()
    optimizers = build_optimizers(model, OptimSection())
    before = parameters(model)
    set_gradients(model, 0)
    optimizers.step(0.0, 0.95)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))


@pytest.mark.parametrize("variance_reduction", [False, True])
def test_state_carries_over_to_another_instance_bit_for_bit(variance_reduction):
    model, section = small_model(), OptimSection(variance_reduction=variance_reduction)
    optimizers = build_optimizers(model, section)
    set_gradients(model, 0)
    optimizers.step(1.0, 0.9)
    twin = GPT(SECTION)
    twin.load_state_dict(model.state_dict())
    resumed = build_optimizers(twin, section)
    resumed.load_state_dict({n: v.clone() for n, v in optimizers.state_dict().items()})
    for instance, optimizer in ((model, optimizers), (twin, resumed)):
        set_gradients(instance, 1)
        optimizer.step(1.0, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), parameters(twin), strict=True))


def test_state_of_another_model_is_refused_and_changes_nothing():
    optimizers = build_optimizers(small_model(), OptimSection())
    before = {n: v.clone() for n, v in optimizers.state_dict().items()}
    missing = dict(list(before.items())[1:])
    reshaped = {n: torch.ones(2, 3) for n in before}
    for bad in (missing, reshaped):
        with pytest.raises(ValueError, match="optimizer state"):
            optimizers.load_state_dict(bad)
    after = optimizers.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_every_parameter_has_a_state_named_after_it():
    model = small_model()
    names = {key.split("/")[1] for key in build_optimizers(model, OptimSection()).state_dict()}
    assert names == {name for name, _ in model.named_parameters()}


def test_a_gpu_that_emulates_bfloat16_is_not_fast_at_it():
    fast = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    assert fast_bf16(torch.device("cuda")) is fast
