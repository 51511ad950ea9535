"""Tokens a second of the data loader, against a plain Python one that streams tokens in a deque.

Claim: at least 50 million tokens a second at 2,048 tokens a sequence, 8 sequences a step, from one
process. `python benchmarks/loader.py` makes its own shards (256 MB, random tokens, in the page
cache), measures both loaders alternately in the same run, and prints the medians and their ratio.
The deque is how the prototype of this system fed a step: a document's tokens are appended, a step's
are taken from the left one by one. It is given encoded tokens, so that only feeding is compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from uncurtail.lm.data import Corpus
from uncurtail.lm.manifest import Manifest
from uncurtail.lm.shards import Document, Journal, ShardWriter

T, B = 2048, 8
VOCABULARY = 65_536
SHARD_TOKENS, SHARDS = 1 << 24, 8
DOCUMENT_TOKENS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = make_corpus(Path(name))
        ours, plain = corpus_steps(corpus), deque_steps(Path(name), corpus.manifest)
        check_same_shape(next(ours), next(plain))
        rates: dict[str, list[float]] = {"corpus": [], "deque": []}
        for _ in range(options.repeats):
            rates["corpus"].append(tokens_per_s(ours, options.seconds))
            rates["deque"].append(tokens_per_s(plain, options.seconds))
    medians = {loader: statistics.median(values) for loader, values in rates.items()}
    result = {
        "sequence_length": T,
        "batch_sequences": B,
        "corpus_mtok_per_s": round(medians["corpus"] / 1e6, 1),
        "deque_mtok_per_s": round(medians["deque"] / 1e6, 2),
        "ratio": round(medians["corpus"] / medians["deque"], 1),
        "goal_mtok_per_s": 50,
        "repeats": options.repeats,
    }
    print(json.dumps(result, indent=1))


def make_corpus(folder: Path) -> Corpus:
    """Shards of random tokens, written as `data prepare` writes them."""
    random = np.random.default_rng(0)
    journal = Journal(folder, "benchmark", "")
    writer = ShardWriter(folder, 2, SHARD_TOKENS, journal)
    block = SHARD_TOKENS // 64
    for number in range(64 * SHARDS):
        tokens = random.integers(0, VOCABULARY, block, dtype=np.uint32)
        writer.add(Document(tokens, block, held_out=False, after=(0, number + 1)))
    writer.add(Document(np.zeros(T + 1, np.uint32), T, held_out=True, after=(1, 0)))
    train, val = writer.finish()
    (folder / "tokenizer.json").write_text("{}")
    Manifest("", "", VOCABULARY, 2, 0, "none", train, val, 1, 1).save(folder)
    return Corpus.open(folder)


def corpus_steps(corpus: Corpus) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    epoch = 0
    while True:
        for step in range(corpus.steps_per_epoch(T, B)):
            yield corpus.batch(epoch, step, T, B)
        epoch += 1


def deque_steps(folder: Path, manifest: Manifest) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    needed = B * T + 1
    tokens: deque[int] = deque()
    while True:
        for shard in manifest.train:
            stored = np.fromfile(folder / shard.name, dtype=manifest.dtype)
            for start in range(0, len(stored), DOCUMENT_TOKENS):
                tokens.extend(stored[start : start + DOCUMENT_TOKENS].tolist())
                while len(tokens) >= needed:
                    taken = [tokens.popleft() for _ in range(needed - 1)]
                    row = torch.tensor([*taken, tokens[0]], dtype=torch.long)
                    yield row[:-1].view(B, T), row[1:].view(B, T)


def check_same_shape(*steps: tuple[torch.Tensor, torch.Tensor]) -> None:
    for inputs, targets in steps:
        assert inputs.shape == targets.shape == (B, T)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def tokens_per_s(steps: Iterator[tuple[torch.Tensor, torch.Tensor]], seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        next(steps)
        count += 1
    return count * B * T / passed


if __name__ == "__main__":
    main()
