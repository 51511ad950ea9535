import hashlib
import math

import pytest
import torch

from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.micro import Micro
from uncurtail.lm.model import ModelSection, initial_weights
from uncurtail.lm.ranks import Ranks
from uncurtail.lm.trainer import NonFiniteLoss, StepMetrics, Trainer, TrainOrder, TrainSection

MODEL = ModelSection(depth=1, vocab_size=400, sequence_length=16)
TRAIN = TrainSection(
    budget_tokens=20 * 64, batch_sequences=4, val_sequences=8, dtype="fp32", threads=1
)
ORDER = TrainOrder(intervals=((0, 0, 4), (0, 8, 10), (1, 3, 5)), tokens_at_start=640, sites=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = DataSection(source="grammar", documents=80, val_share=0.1)
    prepare(data, MODEL, folder)
    return Corpus.open(folder)


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def trainer_of(corpus, train=TRAIN, seed=0, model=MODEL):
    return Trainer(model, train, corpus, seed)


def run(trainer, order=ORDER, stop_after=None):
    """Train, stopping when so many steps are done; the result and every step's metrics."""
    steps: list[StepMetrics] = []
    result = trainer.train(
        order, lambda: stop_after is not None and len(steps) >= stop_after, steps.append
    )
    return result, steps


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_an_order_is_trained_interval_by_interval(corpus):
    result, steps = run(trainer_of(corpus))
    assert [(s.epoch, s.step) for s in steps] == [
        *((0, step) for step in (0, 1, 2, 3, 8, 9)),
        *((1, step) for step in (3, 4)),
    ]
    assert [s.index for s in steps] == list(range(1, 9))
    assert (result.steps, result.tokens) == (8, 8 * 64)
    assert result.mean_loss == pytest.approx(sum(s.loss for s in steps) / 8)


def test_the_first_loss_is_that_of_knowing_nothing(corpus):
    _, steps = run(trainer_of(corpus), stop_after=1)
    assert steps[0].loss == pytest.approx(math.log(400), abs=1e-4)


def test_the_hash_covers_exactly_what_was_consumed(corpus):
    result, _ = run(trainer_of(corpus), stop_after=5)
    hasher = hashlib.sha256()
    for epoch, step in list(ORDER.steps())[:5]:
        corpus.hash_step(hasher, epoch, step, 16, 4)
    assert result.token_sha256 == hasher.hexdigest()
    whole = TrainOrder(((0, 2, 5),), 0, 1)
    assert run(trainer_of(corpus), whole)[0].token_sha256 == corpus.range_sha256(0, 2, 5, 16, 4)


def test_an_order_stopped_before_its_first_step_changes_nothing(corpus):
    trainer = trainer_of(corpus)
    before = trainer.weights()
    result, steps = run(trainer, stop_after=0)
    assert (result.steps, result.tokens, result.mean_loss, steps) == (0, 0, None, [])
    assert result.token_sha256 == hashlib.sha256().hexdigest()
    assert same(trainer.weights(), before)


def test_the_question_to_stop_comes_before_each_step(corpus):
    heard: list[object] = []

    def should_stop():
        heard.append("asked")
        return False

    trainer_of(corpus).train(ORDER, should_stop, heard.append)
    assert [event == "asked" for event in heard] == [True, False] * 8


def test_same_seed_same_losses(corpus):
    once, again, other = (run(trainer_of(corpus, seed=s))[1] for s in (3, 3, 4))
    assert once == again
    assert [s.loss for s in once] != [s.loss for s in other]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cuts", [[1], [4], [7], [2, 3, 6]], ids=str)
def test_stopping_and_resuming_elsewhere_equals_never_stopping_bit_for_bit(
    corpus, tmp_path, cuts, dtype
):
    train = TRAIN.model_copy(update={"deterministic": True, "dtype": dtype})
    whole = trainer_of(corpus, train)
    run(whole)
    steps, done = list(ORDER.steps()), 0
    trainer = trainer_of(corpus, train)
    for number, cut in enumerate([*cuts, len(steps)]):
        rest = tuple((epoch, step, step + 1) for epoch, step in steps[done:])
        order = TrainOrder(rest, ORDER.tokens_at_start + done * trainer.tokens_per_step, 1)
        result, _ = run(trainer, order, stop_after=cut - done)
        done += result.steps
        trainer.save_snapshot(tmp_path)
        weights = trainer.weights()
        trainer = trainer_of(corpus, train, seed=99 + number)
        trainer.load(weights)
        assert trainer.load_snapshot(tmp_path) is None
    assert same(trainer.weights(), whole.weights())
    assert same(trainer.optimizers.state_dict(), whole.optimizers.state_dict())


def test_deterministic_mode_holds_torch_to_it(corpus):
    trainer_of(corpus)
    assert not torch.are_deterministic_algorithms_enabled()
    trainer_of(corpus, TRAIN.model_copy(update={"deterministic": True}))
    assert torch.are_deterministic_algorithms_enabled()


def test_accumulating_micro_batches_gives_the_same_step(corpus):
    whole = trainer_of(corpus)
    micro = trainer_of(corpus, TRAIN.model_copy(update={"micro_sequences": 1}))
    (_, steps), (_, micro_steps) = run(whole, stop_after=3), run(micro, stop_after=3)
    for step, micro_step in zip(steps, micro_steps, strict=True):
        assert micro_step.loss == pytest.approx(step.loss, abs=1e-4)
        assert micro_step.grad_norm == pytest.approx(step.grad_norm, rel=1e-3)


def test_the_schedule_follows_the_tokens_of_all_sites(corpus):
    at_once = TrainOrder(((0, 0, 4),), tokens_at_start=640, sites=3)
    _, steps = run(trainer_of(corpus), at_once)
    # budget 1,280, warm-down over its last 512: 640, 832, 1,024 and 1,216 tokens done
    assert [s.lr_scale for s in steps] == pytest.approx([1.0, 448 / 512, 256 / 512, 64 / 512])


def test_a_gradient_is_clipped_to_its_norm(corpus):
    for clip in (1e-3, 1e3):
        trainer = trainer_of(corpus, TRAIN.model_copy(update={"grad_clip": clip}))
        _, steps = run(trainer, stop_after=1)
        norms = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
        left = float(torch.stack(norms).norm())
        assert left == pytest.approx(min(clip, steps[0].grad_norm), rel=1e-3)
        assert steps[0].grad_norm > 1e-3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_matrices_are_orthogonalized_in_the_dtype_of_training(corpus, dtype):
    trainer = trainer_of(corpus, TRAIN.model_copy(update={"dtype": dtype}))
    name = "transformer.h.0.attn.c_proj.weight"
    # zero at first, and without a gradient as long as the head is zero: one update after two steps
    _, steps = run(trainer, TrainOrder(((0, 0, 2),), 640, 1))
    update = -trainer.weights()[name] / (TRAIN.optim.matrix_lr * steps[1].lr_scale)
    assert update.any()
    rounding = (update.bfloat16().float() - update).abs().max() / update.abs().max()
    assert (float(rounding) < 1e-6) is (dtype == "bf16")


def test_rates_for_another_batch_go_with_the_square_root_of_its_tokens(corpus):
    moved = []
    for reference in (None, 4 * 64):
        optim = TRAIN.optim.model_copy(update={"reference_batch_tokens": reference})
        trainer = trainer_of(corpus, TRAIN.model_copy(update={"optim": optim}))
        run(trainer, stop_after=1)
        # from zero, and by its rate whatever the gradient: Adam's first step
        moved.append(float(trainer.weights()["lm_head.weight"].abs().max()))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-3)


def test_training_lowers_the_held_out_loss(corpus):
    trainer = trainer_of(corpus, TRAIN.model_copy(update={"budget_tokens": 60 * 64}))
    before, bits_before = trainer.evaluate()
    run(trainer, TrainOrder(((0, 0, 60),), 0, 1))
    after, bits_after = trainer.evaluate()
    assert before == pytest.approx(math.log(400), abs=1e-4)
    assert after < before - 1.0
    assert bits_after / bits_before == pytest.approx(after / before, rel=0.1)


def test_validation_never_holds_the_logits_of_a_batch(corpus):
    trainer = trainer_of(corpus)
    before = trainer.evaluate()

    def no_logits(*_):
        raise AssertionError("the logits of a whole batch")

    trainer.model.register_forward_pre_hook(no_logits)
    assert trainer.evaluate() == before


def with_room_for(sequences, trainer):
    """The trainer, on a device whose memory takes so many sequences at a time."""

    def full(_, given):
        if len(given[0]) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    trainer.model.transformer.wte.register_forward_pre_hook(full)
    return trainer


def test_a_step_is_cut_into_as_many_pieces_as_memory_needs(corpus, caplog):
    by_one = TRAIN.model_copy(update={"micro_sequences": 1})
    wanted, held_out = run(trainer_of(corpus, by_one))[1], trainer_of(corpus, by_one).evaluate()
    trainer = with_room_for(1, trainer_of(corpus))
    assert trainer.evaluate() == held_out
    assert run(trainer)[1] == wanted
    assert trainer.micro_sequences == 1
    said = [record.message for record in caplog.records]
    assert said == [
        "no memory for 4 sequences at a time: 2 from now on",
        "no memory for 2 sequences at a time: 1 from now on",
    ]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, r"for 1 sequences of 16 tokens at a time: set train\.checkpoint_activations"),
        ({"checkpoint_activations": True}, r"for 1 sequences .*: train a smaller model or shorter"),
        ({"micro_sequences": 2}, r"for 2 sequences .*: leave train\.micro_sequences out, or lower"),
    ],
    ids=["as many as fit", "thrifty", "given"],
)
def test_too_little_memory_is_said_with_what_to_do(corpus, options, remedy):
    trainer = with_room_for(0, trainer_of(corpus, TRAIN.model_copy(update=options)))
    before = trainer.weights()
    with pytest.raises(ValueError, match=remedy):
        run(trainer)
    with pytest.raises(ValueError, match=remedy):
        trainer.evaluate()
    assert same(trainer.weights(), before)


@pytest.mark.parametrize(
    ("batch", "ranks", "length", "size"),
    [(256, 4, 2048, 32), (256, 1, 2048, 32), (96, 1, 2048, 32), (8, 1, 256, 8), (7, 1, 65536, 1)],
)
def test_no_more_tokens_at_a_time_than_pay(batch, ranks, length, size):
    train = TrainSection(budget_tokens=1, batch_sequences=batch)
    assert Micro(train, length, ranks).size == size


def test_evaluation_changes_nothing_and_agrees_with_itself(corpus):
    trainer = trainer_of(corpus)
    run(trainer, stop_after=2)
    before = trainer.weights()
    assert trainer.evaluate() == trainer.evaluate()
    assert same(trainer.weights(), before)


def test_bits_per_byte_leave_document_starts_out(corpus):
    trainer = trainer_of(corpus)
    nats, bits = trainer.evaluate()
    sizes = corpus.tokenizer().token_bytes
    targets = torch.cat([t.flatten() for _, t in corpus.val_batches(16, 8, 4)])
    counted = sizes[targets[targets != corpus.tokenizer().bos]]
    assert bits == pytest.approx(nats * len(counted) / (math.log(2) * counted.sum()), rel=1e-4)


def test_a_non_finite_loss_stops_before_the_optimizer_moves(corpus):
    trainer = trainer_of(corpus)
    run(trainer, stop_after=2)
    state = {n: v.clone() for n, v in trainer.optimizers.state_dict().items()}
    with torch.no_grad():
        trainer.model.get_parameter("lm_head.weight")[0, 0] = float("nan")
    before = trainer.weights()
    with pytest.raises(NonFiniteLoss, match="epoch 0, step 0"):
        run(trainer)
    after = trainer.weights()
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
    assert same(trainer.optimizers.state_dict(), state)


def test_loading_keeps_the_optimizers(corpus):
    trainer = trainer_of(corpus)
    run(trainer, stop_after=2)
    state = {n: v.clone() for n, v in trainer.optimizers.state_dict().items()}
    trainer.load(initial_weights(MODEL, seed=7))
    assert same(trainer.weights(), initial_weights(MODEL, seed=7))
    assert same(trainer.optimizers.state_dict(), state)


def without_head(weights):
    del weights["lm_head.weight"]


def reshaped(weights):
    weights["lm_head.weight"] = weights["lm_head.weight"][:10]


def not_finite(weights):
    weights["lm_head.weight"][3, 3] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(without_head, "another model"), (reshaped, "shape"), (not_finite, "not finite")],
)
def test_bad_weights_are_refused_and_the_model_is_kept(corpus, spoil, reason):
    trainer = trainer_of(corpus)
    before = trainer.weights()
    weights = initial_weights(MODEL, seed=7)
    spoil(weights)
    with pytest.raises(ValueError, match=reason):
        trainer.load(weights)
    assert same(trainer.weights(), before)


def test_weights_are_a_copy(corpus):
    trainer = trainer_of(corpus)
    trainer.weights()["lm_head.weight"].fill_(1.0)
    assert not trainer.weights()["lm_head.weight"].any()


def torn_state(folder):
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])


def flipped_byte(folder):
    (file,) = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def torn_index(folder):
    path = folder / "snapshot.json"
    path.write_text(path.read_text()[:20])


def other_index(folder):
    (folder / "snapshot.json").write_text("[1, 2]")


def no_state(folder):
    (file,) = folder.glob("*.safetensors")
    file.unlink()


@pytest.mark.parametrize("damage", [torn_state, flipped_byte, torn_index, other_index, no_state])
def test_a_torn_snapshot_is_ignored_with_a_reason(corpus, tmp_path, damage):
    trainer = trainer_of(corpus)
    run(trainer, stop_after=2)
    trainer.save_snapshot(tmp_path)
    damage(tmp_path)
    fresh = trainer_of(corpus)
    reason = fresh.load_snapshot(tmp_path)
    assert reason is not None
    assert "snapshot" in reason
    assert all(not value.any() for value in fresh.optimizers.state_dict().values())


def test_a_missing_snapshot_or_one_of_another_model_is_ignored(corpus, tmp_path):
    trainer = trainer_of(corpus)
    assert trainer.load_snapshot(tmp_path) == "there is no snapshot"
    trainer.save_snapshot(tmp_path)
    larger = trainer_of(corpus, model=MODEL.model_copy(update={"depth": 2}))
    assert larger.load_snapshot(tmp_path) == "the snapshot is of another model or optimizer"


def test_a_crash_while_saving_leaves_the_older_snapshot(corpus, tmp_path, monkeypatch):
    trainer = trainer_of(corpus)
    run(trainer, stop_after=1)
    trainer.save_snapshot(tmp_path)
    older = {n: v.clone() for n, v in trainer.optimizers.state_dict().items()}
    run(trainer, stop_after=1)

    def fail(state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uncurtail.lm.snapshot.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_snapshot(tmp_path)
    resumed = trainer_of(corpus)
    assert resumed.load_snapshot(tmp_path) is None
    assert same(resumed.optimizers.state_dict(), older)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2, "half a file is not kept"
    trainer.save_snapshot(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_bfloat16_trains_as_float32_does(corpus):
    losses = [
        [s.loss for s in run(trainer_of(corpus, TRAIN.model_copy(update={"dtype": dtype})))[1]]
        for dtype in ("fp32", "bf16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0][-1] < losses[0][0]


def test_data_of_a_larger_vocabulary_is_refused(corpus):
    with pytest.raises(ValueError, match="prepare the data for this model"):
        trainer_of(corpus, model=MODEL.model_copy(update={"vocab_size": 300}))


def test_micro_batches_must_divide_the_step():
    with pytest.raises(ValueError, match="does not divide"):
        TrainSection(budget_tokens=1, batch_sequences=8, micro_sequences=3)


def test_micro_batches_larger_than_a_ranks_share_are_cut_to_it(corpus):
    train = TRAIN.model_copy(update={"micro_sequences": 4})

    class Two(Ranks):
        def __init__(self):
            super().__init__()
            self.size = 2

    Trainer(MODEL, train, corpus, 0, Two())
    odd = train.model_copy(update={"batch_sequences": 12})
    with pytest.raises(ValueError, match="does not divide the 6 sequences"):
        Trainer(MODEL, odd, corpus, 0, Two())


def test_activations_computed_twice_give_the_same_gradients(corpus):
    kept, twice = (
        trainer_of(corpus, TRAIN.model_copy(update={"checkpoint_activations": flag}))
        for flag in (False, True)
    )
    assert run(kept)[1] == run(twice)[1]
    assert same(kept.weights(), twice.weights())


@pytest.mark.parametrize(
    ("mode", "compiles"), [("never", False), ("auto", False), ("always", True)]
)
def test_on_a_cpu_only_always_compiles(corpus, monkeypatch, mode, compiles):
    compiled = []

    def fake(loss, **options):
        compiled.append(options)
        return loss

    monkeypatch.setattr(torch, "compile", fake)
    run(trainer_of(corpus, TRAIN.model_copy(update={"compile": mode})), stop_after=1)
    assert bool(compiled) is compiles


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
def test_compiled_steps_are_those_of_eager_ones(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager = run(trainer_of(corpus))[1]
    compiled = run(trainer_of(corpus, TRAIN.model_copy(update={"compile": "always"})))[1]
    assert [s.loss for s in compiled] == pytest.approx([s.loss for s in eager], rel=1e-4)
    assert any(tmp_path.iterdir()), "the cache is where it can be kept"
