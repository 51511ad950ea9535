"""Text from a model: one token after the other, each drawn from what the model expects next."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uncurtail.lm.model import GPT, rotary_tables
from uncurtail.lm.sections import ModelSection
from uncurtail.lm.tokenizer import Tokenizer

__all__ = ["continue_text", "generate", "open_model"]


def open_model(section: ModelSection, weights: Mapping[str, Tensor]) -> GPT:
    """A float32 model that holds these very weights (not copies of them)."""
    with torch.device("meta"):
        model = GPT(section)
    model.load_state_dict(weights, assign=True)
    model.cos_TD, model.sin_TD = rotary_tables(section.sequence_length, section.head_size)
    return model.requires_grad_(False)


@torch.no_grad()
def generate(
    model: GPT,
    tokens: Sequence[int],
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: int | None = None,
) -> list[int]:
    """At most `count` tokens that continue the given ones; fewer if `stop` comes, which is dropped.

    A temperature of 0 takes the most likely token each time, and needs no seed. The model sees as
    many of the latest tokens as its sequence is long. Without a cache of keys and values, so a
    token costs a whole pass.

    Raises:
        ValueError: There is no token to begin with.
    """
    if not tokens:
        raise ValueError("there is no token to begin with: give at least the start token")
    device = model.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    seen = list(tokens)
    for _ in range(count):
        latest = torch.tensor([seen[-model.section.sequence_length :]], device=device)
        logits = model(latest)[0, -1]
        if temperature == 0:
            token = int(logits.argmax())
        else:
            # the highest is 0, whatever divides it: next to no temperature makes no infinity of it
            below = (logits - logits.max()).double() / temperature
            odds = torch.softmax(below, dim=0).to(logits.dtype)
            token = int(torch.multinomial(odds, 1, generator=generator))
        if token == stop:
            break
        seen.append(token)
    return seen[len(tokens) :]


def continue_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The prompt and what follows it, up to `count` tokens or the end of the document."""
    (start,) = tokenizer.encode_batch([prompt], threads=1)
    found = generate(model, start, count, temperature=temperature, seed=seed, stop=tokenizer.bos)
    # the model may have more tokens than the vocabulary: those have no text
    return tokenizer.decode([t for t in (*start[1:], *found) if t < tokenizer.bos])
