"""What only a GPU can show: the same exactness as on a CPU, memory, compiled steps, NCCL."""

import json

import pytest
import torch

from tests.test_ranks import launch, said
from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.model import ModelSection
from uncurtail.lm.ranks import Ranks
from uncurtail.lm.trainer import Trainer, TrainOrder, TrainSection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.timeout(300),
]
MODEL = ModelSection(depth=4, vocab_size=400, sequence_length=128)
TRAIN = TrainSection(budget_tokens=20 * 512, batch_sequences=4, val_sequences=4)
ORDER = TrainOrder(((0, 0, 12),), 0, 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(DataSection(source="grammar", documents=400, val_share=0.1), MODEL, folder)
    return Corpus.open(folder)


@pytest.fixture(autouse=True)
def _restore_mode():
    yield
    torch.use_deterministic_algorithms(False)


def trainer_of(corpus, **changes):
    return Trainer(MODEL, TRAIN.model_copy(update=changes), corpus, 0, Ranks("cuda"))


def losses(trainer, order=ORDER):
    found = []
    trainer.train(order, lambda: False, lambda metrics: found.append(metrics.loss))
    return found


def test_deterministic_mode_gives_the_same_bits_and_resumes_to_them(corpus, tmp_path):
    whole = trainer_of(corpus, deterministic=True)
    of_whole = losses(whole)
    first = trainer_of(corpus, deterministic=True)
    of_first = losses(first, TrainOrder(((0, 0, 5),), 0, 1))
    first.save_snapshot(tmp_path)
    second = trainer_of(corpus, deterministic=True)
    second.load(first.weights())
    assert second.load_snapshot(tmp_path) is None
    rest = TrainOrder(((0, 5, 12),), 5 * second.tokens_per_step, 1)
    assert of_first + losses(second, rest) == of_whole
    after, wanted = second.weights(), whole.weights()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


def test_a_gpu_trains_as_a_cpu_does(corpus):
    fp32 = TRAIN.model_copy(update={"dtype": "fp32"})
    on_cpu = losses(Trainer(MODEL, fp32, corpus, 0))
    assert losses(trainer_of(corpus, dtype="fp32")) == pytest.approx(on_cpu, rel=1e-3)
    assert losses(trainer_of(corpus, dtype="bf16")) == pytest.approx(on_cpu, rel=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_steps_are_those_of_eager_ones(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager = losses(trainer_of(corpus))
    assert losses(trainer_of(corpus, compile="auto")) == pytest.approx(eager, rel=0.02)
    assert any(tmp_path.iterdir())


def test_activations_computed_twice_need_less_memory_and_give_the_same_loss(corpus):
    peaks, found = [], []
    for again in (False, True):
        trainer = trainer_of(corpus, checkpoint_activations=again)
        torch.cuda.reset_peak_memory_stats()
        found.append(losses(trainer))
        peaks.append(torch.cuda.max_memory_allocated())
        del trainer
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert peaks[1] < peaks[0]


def of_ranks(size, corpus, out):
    """Losses, held-out loss and final weights of 12 steps that so many GPUs share, stopped once."""
    fp32 = TRAIN.model_copy(update={"dtype": "fp32", "deterministic": True})
    plan = {
        "device": "cuda",
        "corpus": str(corpus.folder),
        "model": MODEL.model_dump(),
        "train": fp32.model_dump(),
        "spoil": [-1, -1],
        "actions": [
            {"do": "train", "intervals": [[0, 0, 12]], "tokens": 0, "stop_after": 5},
            {"do": "save", "name": "half"},
            {"do": "load", "name": "half"},
            {"do": "train", "intervals": [[0, 5, 12]], "tokens": 5 * 512},
            {"do": "evaluate"},
        ],
    }
    processes = launch(size, plan, out)
    codes = [process.wait(200) for process in processes]
    assert codes == [0] * size, said(out, size)
    reports = [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]
    first, _, ignored, rest, held_out = reports[0]["results"]
    assert ignored is None, "the optimizer state goes on"
    return first["losses"] + rest["losses"], held_out, [report["weights"] for report in reports]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_that_share_each_step_give_the_losses_of_one(corpus, tmp_path):
    alone, held_out, _ = of_ranks(1, corpus, tmp_path / "one")
    together, held_out_together, weights = of_ranks(2, corpus, tmp_path / "two")
    assert len(together) == 12
    assert together == pytest.approx(alone, rel=1e-3)
    assert held_out_together == pytest.approx(held_out, rel=1e-3)
    assert weights[0] == weights[1]
