"""Several ranks train what one would: the same losses, every sequence once, one common stop."""

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests import ranked
from uncurtail.core.leases import FreeSteps, split
from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.ranks import PartedError, Ranks
from uncurtail.lm.sections import ModelSection, TrainSection
from uncurtail.lm.trainer import Trainer

MODEL = {"depth": 2, "vocab_size": 400, "sequence_length": 16}
TRAIN = {
    "budget_tokens": 60 * 64,
    "batch_sequences": 4,
    "val_sequences": 9,
    "dtype": "fp32",
    "threads": 1,
    "deterministic": True,
}
TOKENS = 64
SPOILED = [7, 5]
STEPS = [[0, 0, 30], [1, 10, 30]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = DataSection(source="grammar", documents=80, val_share=0.1)
    prepare(data, ModelSection.model_validate(MODEL), folder)
    return Corpus.open(folder)


def leases_and_stops():
    """Leases with stops at random, as a coordinator gives them; what is left is leased again.

    The plan's train actions, and what they must consume: (intervals, hash is of them).
    """
    chance, free, actions, tokens = random.Random(5), FreeSteps(24), [], 0
    while tokens < 60 * TOKENS:
        lease, free = free.take(chance.randint(1, 12))
        steps = sum(stop - start for _, start, stop in lease)
        wanted = chance.randint(0, steps)
        consumed, rest = split(lease, wanted)
        free = free.give_back(rest)
        actions.append(
            {"do": "train", "intervals": lease, "tokens": tokens, "stop_after": wanted}
            | {"consumed": consumed}
        )
        tokens += wanted * TOKENS
    return actions


def the_plan(corpus):
    whole = {"do": "train", "intervals": STEPS, "tokens": 0}
    return {
        "device": "cpu",
        "corpus": str(corpus.folder),
        "model": MODEL,
        "train": TRAIN,
        "spoil": SPOILED,
        "actions": [
            {"do": "save", "name": "start"},
            whole,
            {"do": "evaluate"},
            {"do": "load", "name": "start"},
            {**whole, "stop_after": 17},
            {"do": "save", "name": "half"},
            # to other weights and back: the ranks follow in weights and optimizer state
            {"do": "train", "intervals": [[3, 0, 2]], "tokens": 0},
            {"do": "load", "name": "half"},
            {"do": "train", "intervals": [[0, 17, 30], [1, 10, 30]], "tokens": 17 * TOKENS},
            {"do": "save", "name": "end"},
            {"do": "train", "intervals": [[7, 3, 9]], "tokens": 0},
            {"do": "load", "name": "end"},
            {"do": "train", "intervals": [[7, 8, 10]], "tokens": 0},
            *leases_and_stops(),
        ],
    }


def launch(size, plan, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.json").write_text(json.dumps(plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # a rank that aborts says where
    }
    command = [sys.executable, ranked.__file__, str(out / "plan.json"), str(out)]
    processes = []
    for rank in range(size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (out / f"{rank}.err").open("wb") as errors:
            processes.append(
                subprocess.Popen(command, env={**os.environ, **common, **own}, stderr=errors)
            )
    return processes


def said(out, size):
    """The end of what each rank wrote to its standard error."""
    texts = [(out / f"{rank}.err").read_text()[-3000:] for rank in range(size)]
    return "\n".join(f"rank {rank}: {text}" for rank, text in enumerate(texts))


@pytest.fixture(scope="module")
def outcomes(corpus, tmp_path_factory):
    """By number of ranks: what each of them saw."""
    found = {}
    for size in (1, 2, 4):
        out = tmp_path_factory.mktemp(f"ranks{size}")
        processes = launch(size, the_plan(corpus), out)
        codes = [process.wait(200) for process in processes]
        assert codes == [0] * size, said(out, size)
        found[size] = [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]
    return found


SIZES = pytest.mark.parametrize("size", [1, 2, 4])
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_give_the_loss_curve_of_one(outcomes, size):
    one, several = outcomes[1][0]["results"], outcomes[size][0]["results"]
    assert len(one[1]["losses"]) == 50
    assert several[1]["losses"] == pytest.approx(one[1]["losses"], rel=1e-4)
    assert several[1]["norms"] == pytest.approx(one[1]["norms"], rel=1e-2)
    assert several[1]["sha256"] == one[1]["sha256"]
    assert several[2] == pytest.approx(one[2], rel=1e-4)


@SIZES
def test_a_run_stopped_and_resumed_equals_the_uninterrupted_one_bit_for_bit(outcomes, size):
    results = outcomes[size][0]["results"]
    whole, first, rest = results[1], results[4], results[8]
    assert results[3] is None
    assert results[7] is None
    assert first["steps"] == 17
    assert first["losses"] + rest["losses"] == whole["losses"]
    assert first["norms"] + rest["norms"] == whole["norms"]


@SIZES
def test_a_value_that_is_not_finite_on_one_rank_stops_all_before_the_optimizer_moves(
    outcomes, size
):
    spoiled, reloaded = outcomes[size][0]["results"][10:12]
    assert spoiled["steps"] == 2
    assert "epoch 7, step 5" in spoiled["error"]
    assert reloaded is None  # the optimizer state fits; the next order trains
    assert outcomes[size][0]["results"][12]["steps"] == 2


@SIZES
def test_random_stops_skip_and_repeat_nothing(outcomes, corpus, size):
    plan = leases_and_stops()
    results = outcomes[size][0]["results"][-len(plan) :]
    done: dict[int, list[int]] = {}
    for action, result in zip(plan, results, strict=True):
        assert result["steps"] == action["stop_after"]
        (interval,) = action["consumed"] or [(0, 0, 0)]
        assert result["sha256"] == corpus.range_sha256(*interval, 16, 4)
        done.setdefault(interval[0], []).extend(range(*interval[1:]))
    assert len(plan) > 8
    for epoch, steps in done.items():
        assert sorted(steps) == list(range(len(steps))), f"epoch {epoch}"
    # what the ranks really took: each sequence of the consumed steps once, by one of them
    taken = sorted(
        sequence
        for rank in outcomes[size]
        for sequence in rank["taken"][-sum(map(len, done.values())) * 4 // size :]
    )
    assert taken == sorted(
        [epoch, 4 * step + i] for epoch, steps in done.items() for step in steps for i in range(4)
    )


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_end_with_the_same_weights(outcomes, size):
    for rank in outcomes[size][1:]:
        assert rank["weights"] == outcomes[size][0]["weights"]
        assert all(map(math.isfinite, rank["weights"].values()))


def test_a_rank_with_less_memory_takes_its_share_in_smaller_pieces(outcomes, corpus, tmp_path):
    plan = the_plan(corpus)
    plan = {**plan, "room": 1, "actions": plan["actions"][1:3]}
    processes = launch(2, plan, tmp_path)
    assert [process.wait(200) for process in processes] == [0, 0], said(tmp_path, 2)
    assert "no memory for 2 sequences at a time: 1 from now on" in said(tmp_path, 2)
    trained, held_out = json.loads((tmp_path / "0.json").read_text())["results"]
    _, wanted, wanted_held_out = outcomes[2][0]["results"][:3]
    assert trained["losses"] == pytest.approx(wanted["losses"], rel=1e-4)
    assert trained["sha256"] == wanted["sha256"]
    assert held_out == pytest.approx(wanted_held_out, rel=1e-4)


def test_a_killed_rank_ends_the_others(corpus, tmp_path):
    plan = {**the_plan(corpus), "spoil": [0, -1], "actions": [{"do": "hang"}]}
    processes = launch(2, plan, tmp_path)
    until = time.monotonic() + 60
    while not (tmp_path / "hanging").exists() and time.monotonic() < until:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait(30) != 0
    assert not psutil.pid_exists(processes[1].pid) or processes[1].wait(5) == -signal.SIGKILL


def test_a_step_that_the_ranks_cannot_share_is_refused(corpus):
    class Three(Ranks):
        def __init__(self):
            super().__init__()
            self.size = 3

    with pytest.raises(ValueError, match="choose a multiple of the ranks"):
        Trainer(
            ModelSection.model_validate(MODEL),
            TrainSection.model_validate(TRAIN),
            corpus,
            0,
            Three(),
        )


def test_without_torchruns_variables_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.join("cpu")
    assert (ranks.first, ranks.size) == (True, 1)
    assert ranks.total([1.0, 2.0]) == [1.0, 2.0]
    assert ranks.stop(lambda: True)


def test_a_failure_of_one_rank_is_not_survived_by_several():
    several = Ranks()
    several.size = 2
    with pytest.raises(PartedError, match="rank 0 of 2: no data"), several.together():
        raise OSError("no data")
    with pytest.raises(OSError, match="no data"), Ranks().together():
        raise OSError("no data")
