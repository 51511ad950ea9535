"""Multiple-choice tasks in the manner of CORE (2406.11794): which continuation does a model expect?

A task is a JSONL file of {"query", "choices", "gold"}; a choice is scored by the mean
log-likelihood of its tokens after the query, and the best one is the answer. Suffixes: B rows,
T tokens, V vocabulary.
"""
# ruff: noqa: N806

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from uncurtail.errors import UserError

TOKENS_AT_ONCE = 4096  # of a forward pass: 1 GB of logits at 65,536 words

# Next-token logits: (B, T) integers -> (B, T, V); causal, so padding on the right changes nothing.
Logits = Callable[[Tensor], Tensor]


class Encoder(Protocol):
    """What a tokenizer does here."""

    def encode_batch(self, documents: Sequence[str]) -> list[list[int]]:
        """Each text's tokens, a start token first."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a task; `gold` is the index of the right choice."""

    query: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class TaskScore:
    """`centered`: 0 is guessing, 1 is all right; below 0 is worse than guessing."""

    questions: int
    accuracy: float
    centered: float


def load_tasks(folder: Path) -> dict[str, tuple[Question, ...]]:
    """Each NAME.jsonl of a folder, by name.

    Raises:
        UserError: There is none, or a line is no question; names file and line.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise UserError(f"{folder} holds no task: put NAME.jsonl files there")
    return {path.stem: _load(path) for path in paths}


def score_task(
    logits: Logits, encoder: Encoder, questions: Sequence[Question], length: int
) -> TaskScore:
    """How often the model expects the right choice most; `length` is its longest input."""
    right = sum(_best(logits, encoder, question, length) == question.gold for question in questions)
    accuracy = right / len(questions)
    by_chance = sum(1 / len(question.choices) for question in questions) / len(questions)
    return TaskScore(len(questions), accuracy, (accuracy - by_chance) / (1 - by_chance))


def core(scores: Mapping[str, TaskScore]) -> float | None:
    """The mean of centered accuracies over tasks; None without tasks."""
    return sum(s.centered for s in scores.values()) / len(scores) if scores else None


def mean_log_likelihoods(
    logits: Logits, rows: Sequence[Sequence[int]], start: int, length: int
) -> list[float]:
    """For each row of tokens, the mean log-likelihood of those from `start` on, given the rest.

    A row that does not fit loses its beginning: the continuation matters most.
    """
    cut = [list(row)[-(length + 1) :] for row in rows]
    starts = [max(1, start - (len(row) - len(c))) for row, c in zip(rows, cut, strict=True)]
    at_once = max(1, TOKENS_AT_ONCE // max(map(len, cut)))
    found: list[float] = []
    for first in range(0, len(cut), at_once):
        part = slice(first, first + at_once)
        found += _mean_log_likelihoods(logits, cut[part], starts[part])
    return found


@torch.no_grad()
def _mean_log_likelihoods(
    logits: Logits, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[float]:
    width = max(map(len, rows))
    tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    logits_BTV = logits(tokens_BT[:, :-1]).float()
    targets_BT = tokens_BT[:, 1:].to(logits_BTV.device)
    expected_BT = logits_BTV.log_softmax(dim=-1).gather(-1, targets_BT[..., None])[..., 0]
    return [
        float(expected_BT[index, start - 1 : len(row) - 1].double().mean())
        for index, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def _best(logits: Logits, encoder: Encoder, question: Question, length: int) -> int:
    """The choice that the model expects most; the first of equals."""
    rows = encoder.encode_batch([f"{question.query} {choice}" for choice in question.choices])
    start = _common(rows)
    scores = mean_log_likelihoods(logits, rows, start, length)
    return max(range(len(scores)), key=scores.__getitem__)


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Where the rows part, as nanochat's CORE has it; each keeps at least one token.

    By tokens, not by text: the query's last token may change with what follows.
    """
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    return min(same, min(map(len, rows)) - 1)


def _load(path: Path) -> tuple[Question, ...]:
    found: list[Question] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): mend or remove it") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(line)
        if question is None:
            raise UserError(
                f'{path}:{number}: write {{"query": "text", "choices": ["a", "b"], "gold": 0}}'
            )
        found.append(question)
    if not found:
        raise UserError(f"{path} holds no question: remove it, or fill it")
    return tuple(found)


def _question(line: str) -> Question | None:
    try:
        row = json.loads(line)
        query, choices, gold = row["query"], row["choices"], row["gold"]
    except (ValueError, KeyError, TypeError):
        return None
    fits = (
        isinstance(query, str)
        and isinstance(choices, list)
        and len(choices) > 1
        and all(isinstance(choice, str) for choice in choices)
        and type(gold) is int
        and 0 <= gold < len(choices)
    )
    return Question(query, tuple(choices), gold) if fits else None
