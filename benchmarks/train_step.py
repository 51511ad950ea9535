"""Our training step against a plain one: the same model, data and optimizer, in the same run.

    python benchmarks/train_step.py [--compiled] [--threads 2] [--rounds 5] [--steps 6]

The plain loop is what one writes first: fp32, eager, logits of the whole batch, cross-entropy. Ours
is `Trainer.train`, hashes, clipping and all. The two take turns, `--rounds` times, and each round
gives one ratio: what else the machine does falls on both. On a busy machine look at the ratio of
CPU seconds, which waits for nobody. 5.2M parameters, 2,048 tokens a step.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.model import GPT, ModelSection, initial_weights
from uncurtail.lm.optim import build_optimizers, fast_bf16
from uncurtail.lm.trainer import Trainer, TrainOrder, TrainSection

MODEL = ModelSection(depth=4, vocab_size=4096, sequence_length=256)
DATA = DataSection(source="grammar", documents=4_000)
BATCH = 8
GOALS = {"eager bf16": 1.6, "compiled bf16": 2.5}


class Plain:
    """The loop that everyone writes: nothing fused, nothing in bf16 but what the optimizer does."""

    def __init__(self, corpus: Corpus, train: TrainSection) -> None:
        self.corpus, self.train = corpus, train
        self.model = GPT(MODEL, torch.float32)
        self.model.load_state_dict(initial_weights(MODEL, 0))
        self.optimizers = build_optimizers(self.model, train.optim)
        self.done = 0

    def take(self, steps: int) -> float:
        """So many more steps; the last loss."""
        loss = torch.zeros(())
        for step in range(self.done, self.done + steps):
            inputs, targets = self.corpus.batch(0, step, MODEL.sequence_length, BATCH)
            self.optimizers.zero_grad()
            logits = self.model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.grad_clip)
            self.optimizers.step(1.0, 0.95)
        self.done += steps
        return float(loss.detach())


class Ours:
    """The trainer of a site."""

    def __init__(self, corpus: Corpus, train: TrainSection) -> None:
        self.trainer = Trainer(MODEL, train, corpus, 0)
        self.done = 0

    def take(self, steps: int) -> float:
        """So many more steps; the last loss."""
        losses = []
        order = TrainOrder(
            ((0, self.done, self.done + steps),), self.done * self.trainer.tokens_per_step, 1
        )
        self.trainer.train(order, lambda: False, lambda metrics: losses.append(metrics.loss))
        self.done += steps
        return losses[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiled", action="store_true", help="also torch.compile")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="a turn")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "uncurtail-bench"
    )
    asked = parser.parse_args()
    if not fast_bf16(torch.device("cpu")):
        print("This CPU has no bf16 matrix units: the goals are for one that has.")
    prepare(DATA, MODEL, asked.data)
    corpus = Corpus.open(asked.data)
    budget = 10**9  # the schedule is at its top: the same rates on both sides
    train = TrainSection(
        budget_tokens=budget, batch_sequences=BATCH, threads=asked.threads, dtype="bf16"
    ).model_copy(update={"schedule": flat_schedule()})
    loops = {"plain fp32 eager": Plain(corpus, train), "eager bf16": Ours(corpus, train)}
    if asked.compiled:
        loops["compiled bf16"] = Ours(corpus, train.model_copy(update={"compile": "always"}))
    torch.set_num_threads(asked.threads)
    first = {}
    for name, loop in loops.items():
        began = time.perf_counter()
        loop.take(1)
        first[name] = time.perf_counter() - began
        loop.take(2)
    seconds, losses = measure(loops, asked.rounds, asked.steps)
    show(seconds, losses, first, asked)


def flat_schedule() -> object:
    return TrainSection(budget_tokens=1).schedule.model_copy(
        update={"warmup_share": 0.0, "warmdown_share": 0.0, "momentum_ramp_share": 0.0}
    )


def measure(loops: dict, rounds: int, steps: int) -> tuple[dict, dict]:
    """Seconds a step of each turn by loop, wall and CPU; every other round is in reverse order."""
    seconds = {name: [] for name in loops}
    losses = {}
    for number in range(rounds):
        order = list(loops) if number % 2 == 0 else list(loops)[::-1]
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            losses[name] = loops[name].take(steps)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            seconds[name].append((spent[0] / steps, spent[1] / steps))
    return seconds, losses


def show(seconds: dict, losses: dict, first: dict, asked: argparse.Namespace) -> None:
    tokens = BATCH * MODEL.sequence_length
    plain = seconds["plain fp32 eager"]
    print(
        f"torch {torch.__version__}, {asked.threads} threads, {tokens:,} tokens a step, "
        f"{asked.rounds} rounds of {asked.steps} steps"
    )
    heads = ("tokens/s", "ratio", "goal", "CPU ratio", "loss", "first step")
    print(f"{'loop':18}" + "".join(f"{head:>11}" for head in heads) + "  ratio of each round")
    for name, times in seconds.items():
        wall, cpu = (
            [a[kind] / b[kind] for a, b in zip(plain, times, strict=True)] for kind in (0, 1)
        )
        print(
            f"{name:18}{tokens / statistics.median(w for w, _ in times):11,.0f}"
            f"{statistics.median(wall):11.2f}{GOALS.get(name, ''):>11}"
            f"{statistics.median(cpu):11.2f}{losses[name]:11.3f}{first[name]:9.1f} s  "
            + " ".join(f"{ratio:.2f}" for ratio in wall)
        )


if __name__ == "__main__":
    sys.exit(main())
