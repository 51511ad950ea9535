import pytest
import torch

from uncurtail.sync import merge
from uncurtail.sync.merge import StreamingMean
from uncurtail.sync.outer import OuterSection, outer_step


def deltas(count):
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(3, generator=generator)}
        for _ in range(count)
    ]


def folded(parts, weights):
    mean = StreamingMean()
    for delta, weight in zip(parts, weights, strict=True):
        mean.fold(delta, weight)
    found = mean.mean()
    assert found is not None
    return found


def test_mean_is_weighted_by_tokens(monkeypatch):
    monkeypatch.setattr(merge, "CHUNK", 4)  # several chunks, the last one short
    parts, weights = deltas(3), [100, 200, 700]
    found = folded(parts, weights)
    for name in ("a", "b"):
        wanted = sum(w * d[name] for d, w in zip(parts, weights, strict=True)) / 1000
        torch.testing.assert_close(found[name], wanted)


def test_mean_does_not_depend_on_the_order():
    parts, weights = deltas(5), [1, 10**9, 3, 10**6, 50]
    forth, back = folded(parts, weights), folded(parts[::-1], weights[::-1])
    torch.testing.assert_close(forth, back)


def test_mean_of_one_is_itself_and_of_none_is_none():
    (delta,) = deltas(1)
    assert torch.equal(folded([delta], [9])["a"], delta["a"])
    assert StreamingMean().mean() is None


def test_bfloat16_deltas_are_averaged_in_float32():
    parts = [{"a": torch.full((4,), value).bfloat16()} for value in (1.0, 1.0078125)]
    found = folded(parts, [1, 1])["a"]
    assert found.dtype == torch.float32
    assert float(found[0]) == 1.00390625  # no bfloat16 lies between the two


def test_folding_leaves_the_delta_alone():
    parts = deltas(2)
    before = parts[0]["a"].clone()
    folded(parts, [1, 1])
    assert torch.equal(parts[0]["a"], before)


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [({"a": torch.ones(2)}, 5), ({"a": torch.ones(7, 5)}, 5), (None, 0), (None, -3)],
    ids=["wrong-shape", "missing-name", "no-tokens", "negative-tokens"],
)
def test_a_bad_fold_is_refused_and_leaves_the_mean(delta, tokens):
    first, second = deltas(2)
    mean = StreamingMean()
    mean.fold(first, 10)
    with pytest.raises(ValueError, match="delta"):
        mean.fold(delta or second, tokens)
    found = mean.mean()
    assert found is not None
    assert torch.equal(found["a"], first["a"])
    assert mean.tokens == 10


def test_plain_outer_step_adds_the_mean_delta():
    weights, delta = deltas(2)
    moved, momentum = outer_step(OuterSection(), weights, delta, None)
    assert momentum is None
    assert torch.equal(moved["a"], weights["a"] + delta["a"])


def test_nesterov_outer_step_equals_torch_sgd():
    weights, *steps = deltas(6)
    section = OuterSection(kind="nesterov", lr=0.7, momentum=0.6)
    parameter = torch.nn.Parameter(weights["a"].clone())
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=0.6, nesterov=True)
    momentum = None
    for delta in steps:
        parameter.grad = -delta["a"]
        reference.step()
        weights, momentum = outer_step(section, weights, delta, momentum)
    torch.testing.assert_close(weights["a"], parameter.detach())


def test_outer_step_changes_nothing_it_is_given():
    weights, delta, momentum = deltas(3)
    copies = [{n: v.clone() for n, v in part.items()} for part in (weights, delta, momentum)]
    outer_step(OuterSection(kind="nesterov"), weights, delta, momentum)
    for part, copy in zip((weights, delta, momentum), copies, strict=True):
        assert all(torch.equal(part[n], copy[n]) for n in part)


def test_outer_step_refuses_another_model():
    weights, delta = deltas(2)
    with pytest.raises(ValueError, match="not one model"):
        outer_step(OuterSection(), weights, {"a": delta["a"]}, None)
