import csv
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uncurtail import baseline
from uncurtail.baseline import Limit, intervals, run_baseline
from uncurtail.config import ConfigError
from uncurtail.datanote import noted_data
from uncurtail.evaluating import Request, evaluate
from uncurtail.exporting import sample_text
from uncurtail.lm.checkpoint import decode_weights
from uncurtail.lm.ranks import Ranks
from uncurtail.lm.sections import ModelSection
from uncurtail.lm.trainer import initial_weights
from uncurtail.modelsource import Source

EXPERIMENT = """
name = "tiny"
[sites.north]
preset = "windy"
[model]
depth = 1
vocab_size = 400
sequence_length = 16
[data]
source = "grammar"
documents = 80
val_share = 0.1
[train]
budget_tokens = 1920
batch_sequences = 4
val_sequences = 8
dtype = "fp32"
threads = 1
deterministic = true
"""
OF_FILES = EXPERIMENT.replace('"grammar"\ndocuments = 80', '"files"')
FOREVER = ["--set", "train.budget_tokens=1000000000"]


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An experiment of 30 steps; what a baseline changes in its process is put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT)
    yield path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def rows(out):
    with (out / "steps.csv").open() as file:
        return list(csv.DictReader(file))


def measured(out):
    """What must be equal again: all but the times."""
    return [{k: v for k, v in row.items() if k != "train_s"} for row in rows(out)]


def run(experiment, out, limit=None, overrides=(), *, resume=False):
    return run_baseline(experiment, list(overrides), out, limit or Limit(), resume=resume)


def test_a_baseline_trains_the_budget_and_leaves_a_model(experiment, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(experiment, out) == 0
    assert [int(row["step"]) for row in rows(out)] == list(range(1, 31))
    assert [int(row["tokens"]) for row in rows(out)] == list(range(64, 1921, 64))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["tokens"], summary["finished"]) == (30, 1920, True)
    assert [e["tokens"] for e in summary["evaluations"]] == [0, 1920]
    assert summary["val_loss"] < summary["evaluations"][0]["val_loss"]
    assert summary["tokens_per_s"] > 0
    weights = decode_weights((out / "weights.safetensors").read_bytes())
    untrained = initial_weights(ModelSection(depth=1, vocab_size=400, sequence_length=16), 0)
    assert weights.keys() == untrained.keys()
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: uncurtail run ")


@pytest.mark.parametrize("cuts", [[1], [13], [5, 6, 29]], ids=str)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(experiment, tmp_path, cuts):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(experiment, whole)
    for number, steps in enumerate(cuts):
        run(experiment, parts, Limit(steps=steps), resume=number > 0)
    run(experiment, parts, resume=True)
    assert measured(parts) == measured(whole)
    assert (parts / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


def test_no_minutes_left_saves_and_says_how_to_go_on(experiment, tmp_path, capsys):
    out = tmp_path / "out"
    run(experiment, out, Limit(steps=3))
    assert run(experiment, out, Limit(minutes=0), resume=True) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith(f"--out {out} --resume")
    assert run(experiment, out, resume=True) == 0
    assert len(rows(out)) == 30


def test_steps_after_the_last_save_are_trained_again(experiment, tmp_path):
    out = tmp_path / "out"
    run(experiment, out, Limit(steps=4))
    with (out / "steps.csv").open("a") as file:
        file.write("5,320,1.0,1.0,1.0,9.9\n6,3")  # it was killed in mid-row, two steps later
    run(experiment, out, Limit(steps=8), resume=True)
    assert [int(row["step"]) for row in rows(out)] == list(range(1, 9))
    assert rows(out)[4]["loss"] != "1.0"


def damaged_progress(out):
    (out / "progress.json").write_text("{")


def without_weights(out):
    (out / "saved" / "2" / "weights.safetensors").unlink()


def without_optimizer(out):
    (out / "saved" / "2" / "snapshot.json").unlink()


@pytest.mark.parametrize("damage", [damaged_progress, without_weights, without_optimizer])
def test_what_cannot_be_resumed_is_refused_in_words(experiment, tmp_path, damage):
    out = tmp_path / "out"
    run(experiment, out, Limit(steps=2))
    damage(out)
    with pytest.raises(ConfigError, match="cannot be"):
        run(experiment, out, resume=True)


def test_results_are_neither_overwritten_nor_invented(experiment, tmp_path):
    with pytest.raises(ConfigError, match="leave out --resume"):
        run(experiment, tmp_path / "out", resume=True)
    run(experiment, tmp_path / "out", Limit(steps=1))
    with pytest.raises(ConfigError, match="--resume goes on"):
        run(experiment, tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.batch_sequences=8", "train.batch_sequences 4 -> 8"),
        ("train.val_sequences=4", "train.val_sequences 8 -> 4"),
        ("seed=7", "seed 0 -> 7"),
        ("model.depth=2", "model.depth 1 -> 2"),
        ("data.documents=90", "data.documents 80 -> 90"),
    ],
)
def test_another_experiment_is_not_taken_for_the_rest_of_this_one(
    experiment, tmp_path, override, named
):
    out = tmp_path / "out"
    run(experiment, out, Limit(steps=2))
    with pytest.raises(ConfigError, match=named):
        run(experiment, out, Limit(steps=4), [override], resume=True)
    assert json.loads((out / "progress.json").read_text())["steps"] == 2
    later = ["train.optim.matrix_lr=0.001", "train.micro_sequences=2", "train.threads=2"]
    assert run(experiment, out, Limit(steps=4), later, resume=True) == 0


def test_a_baseline_knows_its_data_and_keeps_to_it(experiment, tmp_path):
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("A class is a statement.\n\n" * 2000)
    files = [f"data.files=['{text}']", "data.val_share=0.5", "model.vocab_size=300"]
    experiment.write_text(OF_FILES)
    run(experiment, out, Limit(steps=2), files)
    assert noted_data(out).is_dir()
    before = (out / "data.json").read_text()
    os.utime(text, (1, 1))  # other files, as far as anyone can tell
    with pytest.raises(ConfigError, match="holds other data than out began with"):
        run(experiment, out, Limit(steps=4), files, resume=True)
    assert (out / "data.json").read_text() == before
    assert noted_data(out).is_dir()


def test_a_baseline_is_measured_and_sampled_wherever_one_stands(
    experiment, tmp_path, capsys, monkeypatch
):
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("A class is a statement.\n\n" * 2000)
    files = ["data.files=['text.txt']", "data.val_share=0.5", "model.vocab_size=300"]
    experiment.write_text(OF_FILES)
    monkeypatch.chdir(tmp_path)
    run(experiment, out, Limit(steps=6), files)
    os.utime(text, (1, 1))
    monkeypatch.chdir("/")
    summary = json.loads((out / "summary.json").read_text())
    found = json.loads(evaluate(Request(out), as_json=True))
    assert found["val_loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], rel=1e-6)
    assert (found["model"], found["version"], found["tokens"]) == ("out", None, 6 * 64)
    weights = out / "weights.safetensors"
    assert json.loads(evaluate(Request(weights), as_json=True))["val_loss"] == found["val_loss"]
    source = Source(weights)
    assert sample_text(source, "A", 4, temperature=0.0, seed=0).startswith("A")


def test_what_was_never_saved_binds_nobody(experiment, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(experiment, out, Limit(steps=9, minutes=0), ["data.documents=90"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "Nothing was trained yet; start with: uncurtail baseline" in said
    assert said.endswith(f"--set data.documents=90 --steps 9 --out {out}")
    assert run(experiment, out, Limit(steps=1)) == 0


def test_the_way_to_go_on_is_a_command_that_goes_on(experiment, tmp_path, capsys):
    out = tmp_path / "out of order"
    given = ["train.optim.adam_betas=[0.7, 0.9]"]
    run(experiment, out, Limit(steps=2), given)
    assert "the same tokens" not in capsys.readouterr().out, "a run would train the whole budget"
    run(experiment, out, Limit(steps=5, minutes=0), given, resume=True)
    said = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(said.partition("Resume with: ")[2])
    assert words[:3] == ["uncurtail", "baseline", str(experiment)]
    assert words[3:] == ["--set", *given, "--steps", "5", "--out", str(out), "--resume"]
    run(experiment, out, Limit(), given, resume=True)
    assert "the same tokens" in capsys.readouterr().out


@contextmanager
def files_of_at_most(size_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [100_000, 500], ids=["for-no-weights", "for-no-row"])
def test_a_disk_without_room_is_one_line_and_costs_what_was_not_saved(experiment, tmp_path, room):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(experiment, whole, Limit(steps=9))
    run(experiment, out, Limit(steps=5))
    with files_of_at_most(room), pytest.raises(ConfigError, match=r"make room, .* still there"):
        run(experiment, out, Limit(steps=9), resume=True)
    run(experiment, out, Limit(steps=9), resume=True)
    assert measured(out) == measured(whole)
    assert (out / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


class Follower:
    """The trainer of a rank that cannot read its data."""

    def follow(self):
        raise OSError("no data")

    def dismiss(self):
        raise AssertionError("it would wait for a word, and the others for its gradients")


def test_a_rank_that_fails_alone_ends_at_once(experiment, tmp_path, monkeypatch):
    second = Ranks()
    second.rank = 1
    monkeypatch.setattr(Ranks, "join", lambda _: second)
    monkeypatch.setattr(baseline, "_trainer", lambda *_: (Follower(), 1))
    with pytest.raises(OSError, match="no data"):
        run(experiment, tmp_path / "out")


def test_a_corpus_below_one_step_is_refused(experiment, tmp_path):
    with pytest.raises(ConfigError, match="smaller than one step"):
        run(experiment, tmp_path / "out", overrides=["train.batch_sequences=100000"])


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 40))
def test_intervals_are_the_steps_in_order_each_once(first, count, per_epoch):
    found = intervals(first, count, per_epoch)
    steps = [epoch * per_epoch + s for epoch, a, b in found for s in range(a, b)]
    assert steps == list(range(first, first + count))
    assert all(0 <= a < b <= per_epoch for _, a, b in found)


def command(experiment, out, *more):
    return ["-m", "uncurtail", "baseline", str(experiment), "--out", str(out), *more]


def start(arguments, **kwargs):
    source = str(Path(__file__).parents[1] / "src")
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        text=True,
        **kwargs,
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ctrl_c_stops_at_a_step_saves_and_can_be_resumed(experiment, tmp_path):
    out = tmp_path / "out"
    with start(command(experiment, out, *FOREVER)) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and not ((out / "steps.csv").exists() and rows(out)):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].endswith("--resume")
    done = len(rows(out))
    assert json.loads((out / "progress.json").read_text())["steps"] == done > 0
    assert run(experiment, out, Limit(steps=done + 2), FOREVER[1::2], resume=True) == 0
    assert len(rows(out)) == done + 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_under_torchrun_two_ranks_give_the_losses_of_one(experiment, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(experiment, one)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with start([*torchrun, *command(experiment, two)]) as process:
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads((two / "summary.json").read_text())["ranks"] == 2
    losses = [[float(row["loss"]) for row in rows(out)] for out in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
