"""Our training step against a plain one: the same model, data and rates, in the same run.

    python benchmarks/train_step.py [--compiled] [--threads 2] [--rounds 5] [--steps 6]

The plain loop is what one writes first with torch alone: fp32, eager, logits of the whole batch,
cross-entropy, torch's own Muon and AdamW. Ours is `Trainer.train`, hashes, clipping and all. Each
has a process of its own, since ours changes how its process keeps memory and how long OpenMP's
threads spin. They take turns, `--rounds` times, and each round gives one ratio: what else the
machine does falls on both. On a busy machine look at the ratio of CPU seconds, which waits for
nobody. 5.2M parameters, 2,048 tokens a step.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F

from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.model import GPT, ModelSection, initial_weights
from uncurtail.lm.optim import REFERENCE_WIDTH, fast_bf16
from uncurtail.lm.sections import ScheduleSection
from uncurtail.lm.trainer import Trainer, TrainOrder, TrainSection

MODEL = ModelSection(depth=4, vocab_size=4096, sequence_length=256)
DATA = DataSection(source="grammar", documents=4_000)
BATCH = 8
GOALS = {"eager bf16": 1.6, "compiled bf16": 2.5}
OPENMP_SPINS = "300000"  # what OpenMP does where nobody says another number
OUR_SPINS = os.environ["GOMP_SPINCOUNT"]
WARM_UP = 3  # steps before the first turn, the first of which is timed by itself
# the rates stay at their top, so both sides have the same
FLAT = ScheduleSection(warmup_share=0.0, warmdown_share=0.0, momentum_ramp_share=0.0)


class Plain:
    """The loop that everyone writes: nothing fused, nothing in bf16 but what torch's Muon does."""

    def __init__(self, corpus: Corpus, train: TrainSection) -> None:
        self.corpus, self.train = corpus, train
        self.model = GPT(MODEL, torch.float32)
        self.model.load_state_dict(initial_weights(MODEL, 0))
        named, optim = dict(self.model.named_parameters()), train.optim
        by_width = (MODEL.width / REFERENCE_WIDTH) ** -0.5
        self.optimizers = (
            torch.optim.Muon(
                [weight for name, weight in named.items() if ".h." in name],
                lr=optim.matrix_lr,
                momentum=optim.muon_momentum,
                weight_decay=optim.weight_decay,
            ),
            torch.optim.AdamW(
                [
                    {"params": [named[name]], "lr": lr * by_width}
                    for name, lr in (
                        ("transformer.wte.weight", optim.embedding_lr),
                        ("lm_head.weight", optim.head_lr),
                    )
                ],
                betas=optim.adam_betas,
                eps=optim.adam_eps,
                weight_decay=0.0,
            ),
        )
        self.done = 0

    def take(self, steps: int) -> float:
        """So many more steps; the last loss."""
        loss = torch.zeros(())
        for step in range(self.done, self.done + steps):
            inputs, targets = self.corpus.batch(0, step, MODEL.sequence_length, BATCH)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            logits = self.model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.grad_clip)
            for optimizer in self.optimizers:
                optimizer.step()
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


def serve(name: str, data: Path, train: TrainSection, line: Connection) -> None:
    """In a process of its own: take as many steps as are asked for, and say how long it took."""
    assert train.threads is not None
    torch.set_num_threads(train.threads)
    loop = (Plain if name.startswith("plain") else Ours)(Corpus.open(data), train)
    while steps := line.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        loss = loop.take(steps)
        line.send((time.perf_counter() - wall, time.process_time() - cpu, loss))


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
        print("This CPU has no bf16 products: the goals are for one that has matrix units.")
    prepare(DATA, MODEL, asked.data)
    train = TrainSection(
        budget_tokens=10**9,
        batch_sequences=BATCH,
        threads=asked.threads,
        dtype="bf16",
        schedule=FLAT,
    )
    trains = {"plain fp32 eager": train, "eager bf16": train}
    if asked.compiled:
        trains["compiled bf16"] = train.model_copy(update={"compile": "always"})
    context = get_context("spawn")
    lines, processes, first = {}, [], {}
    for name, section in trains.items():
        lines[name], theirs = context.Pipe()
        os.environ["GOMP_SPINCOUNT"] = OPENMP_SPINS if name.startswith("plain") else OUR_SPINS
        process = context.Process(target=serve, args=(name, asked.data, section, theirs))
        process.start()
        processes.append(process)
        theirs.close()
        first[name], _, _ = take(lines[name], 1)
        take(lines[name], WARM_UP - 1)
    seconds, losses = measure(lines, asked.rounds, asked.steps)
    for line in lines.values():
        line.send(0)
    for process in processes:
        process.join()
    show(seconds, losses, first, asked)


def take(line: Connection, steps: int) -> tuple[float, float, float]:
    """Let a loop take its turn; seconds by wall clock and CPU, last loss."""
    line.send(steps)
    return line.recv()


def measure(lines: dict, rounds: int, steps: int) -> tuple[dict, dict]:
    """Seconds a step of each turn by loop, wall and CPU; every other round is in reverse order."""
    seconds = {name: [] for name in lines}
    losses = {}
    for number in range(rounds):
        order = list(lines) if number % 2 == 0 else list(lines)[::-1]
        for name in order:
            wall, cpu, losses[name] = take(lines[name], steps)
            seconds[name].append((wall / steps, cpu / steps))
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
