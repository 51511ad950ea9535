"""d20 on one GPU: tokens/s, MFU, peak memory, time to the first step. For when a GPU is at hand.

    python benchmarks/gpu.py [--depth 20] [--micro N] [--steps 20] [--checkpoint-activations]

Each case runs in a process of its own, so that memory and start are its own: eager, compiled with
an empty cache, compiled again with the cache that this left. Without CUDA it says so and exits 0.
Results go to benchmarks/results/ as JSON, with date, commit and device.

MFU is model FLOPs (6 a weight and token, embedding left out, and 6 x 2 x depth x T x width / 2 of
causal attention: what is masked is not counted) over the GPU's dense bf16 rate. Activations that
are computed twice count once.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import torch

from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.model import GPT, ModelSection
from uncurtail.lm.ranks import Ranks
from uncurtail.lm.trainer import Trainer, TrainOrder, TrainSection

# Dense bf16 TFLOP/s without sparsity, from the vendors' data sheets; by words of the device's name
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A100 PCIe": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
# What names another chip or clock: with one of these, an entry without it is of something else
VARIANTS = {"PCIE", "NVL", "D", "LAPTOP", "MOBILE", "SUPER", "TI"}
RESULTS = Path(__file__).parent / "results"
CASES = ("eager", "compiled-cold", "compiled-warm")


def flops_per_token(model: ModelSection) -> float:
    """Forward and backward, of the model and nothing else."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in GPT(model).parameters())
    embedding = model.vocab_size * model.width
    attention = 6 * 2 * model.depth * model.sequence_length * model.width / 2
    return 6.0 * (weights - embedding) + attention


def peak_tflops(name: str) -> float | None:
    """The GPU's dense bf16 rate; None if it is not in the table."""
    words = _words(name)
    for entry, peak in PEAK_TFLOPS.items():
        if _words(entry) <= words and words & VARIANTS == _words(entry) & VARIANTS:
            return peak
    return None


def _words(name: str) -> set[str]:
    return set(re.findall(r"[A-Z0-9]+", name.upper()))


def measure(asked: argparse.Namespace) -> dict:
    """One case, in this process."""
    began = time.perf_counter()
    model = ModelSection(depth=asked.depth, vocab_size=65536, sequence_length=asked.length)
    train = TrainSection(
        budget_tokens=10**12,
        batch_sequences=asked.batch,
        micro_sequences=asked.micro,
        compile="never" if asked.case == "eager" else "always",
        checkpoint_activations=asked.checkpoint_activations,
    )
    corpus = Corpus.open(asked.data)
    trainer = Trainer(model, train, corpus, 0, Ranks("cuda"))
    ends = [time.perf_counter()]
    order = TrainOrder(tuple((epoch, 0, 1) for epoch in range(asked.steps + 1)), 0, 1)
    trainer.train(order, lambda: False, lambda _: ends.append(time.perf_counter()))
    seconds = [b - a for a, b in pairwise(ends[1:])]
    rate = trainer.tokens_per_step / statistics.median(seconds)
    peak = peak_tflops(torch.cuda.get_device_name())
    return {
        "tokens_per_s": round(rate),
        "micro_sequences": trainer.micro_sequences,
        "mfu": None if peak is None else round(rate * flops_per_token(model) / peak / 1e12, 4),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        # what the device must have: also what torch holds and does not use at the moment
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "first_step_s": round(ends[1] - began, 1),
        "step_s": round(statistics.median(seconds), 4),
    }


def data(folder: Path, length: int, batch: int) -> None:
    """A corpus of one step at least, in the model's vocabulary; read once an epoch."""
    documents = 40_000
    section = DataSection(source="grammar", documents=documents)
    prepare(section, ModelSection(vocab_size=65536, sequence_length=length), folder)
    if Corpus.open(folder).steps_per_epoch(length, batch) < 1:
        sys.exit(f"{documents} documents are less than one step: lower --batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64, help="sequences a step")
    parser.add_argument("--micro", type=int, help="sequences at a time; else as many as fit")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here (or torch is a CPU build): nothing to measure.")
        return
    if asked.case is not None:
        print(json.dumps(measure(asked)))
        return
    with tempfile.TemporaryDirectory() as home:
        folder = asked.data or Path(home) / "data"
        data(folder, asked.length, asked.batch)
        cache = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(Path(home) / "compiled")}
        results = {case: in_process(case, folder, cache) for case in CASES}
    write(asked, results)


def in_process(case: str, folder: Path, environment: dict[str, str]) -> dict:
    command = [sys.executable, *sys.argv, "--case", case, "--data", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return {"error": f"exit {done.returncode}: see above"}
    print(f"{case}: {done.stdout.strip()}")
    return json.loads(done.stdout)


def write(asked: argparse.Namespace, results: dict) -> None:
    now = datetime.fromtimestamp(time.time(), tz=UTC)
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    name = torch.cuda.get_device_name()
    body = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit or None,
        "device": name,
        "peak_tflops": peak_tflops(name),
        "torch": torch.__version__,
        "setting": {k: v for k, v in vars(asked).items() if k not in ("case", "data")},
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(body, indent=1) + "\n")
    print(f"{path}")


if __name__ == "__main__":
    main()
