"""What a model can do, from its weights: held-out loss, bits per byte, multiple-choice tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uncurtail.lm.core_tasks import Question, TaskScore, score_task
from uncurtail.lm.data import Corpus
from uncurtail.lm.ranks import Ranks
from uncurtail.lm.sections import ModelSection, TrainSection
from uncurtail.lm.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Measured:
    """`val_loss` is nats per token; `bits_per_byte` compares across vocabularies."""

    val_loss: float
    bits_per_byte: float
    tasks: Mapping[str, TaskScore]


def measure(
    model: ModelSection,
    train: TrainSection,
    weights: Mapping[str, Tensor],
    corpus: Corpus,
    tasks: Mapping[str, Sequence[Question]],
) -> Measured:
    """Evaluate weights over the corpus's held-out split, as a trainer does at commits.

    Raises:
        ValueError: The weights, the vocabulary or the held-out text do not fit the model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(model, train, corpus, 0, Ranks(device))
    trainer.load(weights)
    val_loss, bits_per_byte = trainer.evaluate()
    tokenizer = corpus.tokenizer()
    scores = {
        name: score_task(
            lambda tokens: trainer.model(tokens.to(device)),
            tokenizer,
            questions,
            model.sequence_length,
        )
        for name, questions in tasks.items()
    }
    return Measured(val_loss, bits_per_byte, scores)


def section_of(weights: Mapping[str, Tensor], sequence_length: int) -> ModelSection:
    """The model that these weights are of, by their shapes; only the length is not in them.

    Raises:
        ValueError: They are of no model of ours.
    """
    blocks = "transformer.h."
    try:
        vocab_size, width = weights["transformer.wte.weight"].shape
        kv_width = weights[f"{blocks}0.attn.c_k.weight"].shape[0]
        section = ModelSection(
            depth=len({name.split(".")[2] for name in weights if name.startswith(blocks)}),
            vocab_size=vocab_size,
            sequence_length=sequence_length,
            residual_scalars="resid_lambdas" in weights,
        )
        kv_heads = kv_width // section.head_size
        section = ModelSection(**{**section.model_dump(), "kv_heads": kv_heads})
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError("these weights are of no nanochat model") from error
    if section.width != width:
        raise ValueError(f"width {width} at depth {section.depth}: not a nanochat model's 64 each")
    return section
