"""A trained model as other tools keep theirs: a folder for transformers, or one for nanochat.

Nothing is computed anew: both are this architecture, so an export renames weights and translates
the vocabulary. Neither tool is needed to write its files.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import tiktoken
import torch
from torch import Tensor

from uncurtail.errors import UserError
from uncurtail.lm.headloss import SOFTCAP
from uncurtail.lm.model import GPT, NORM_EPS, ROTARY_BASE
from uncurtail.lm.sections import ModelSection
from uncurtail.lm.tokenizer import BOS, Tokenizer

HF_LAYER = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# What nanochat's chat fine-tuning looks up by name, after <|bos|>
NANOCHAT_SPECIALS = tuple(
    f"<|{speaker}_{edge}|>"
    for speaker in ("user", "assistant", "python", "output")
    for edge in ("start", "end")
)


@dataclass(frozen=True)
class Trained:
    """A model to hand on: float32 weights by our names, and the vocabulary they were trained on.

    `step` counts inner steps of one site's batch; `note` is who trained it, for a reader.
    """

    section: ModelSection
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    step: int = 0
    note: Mapping[str, Any] | None = None


def mismatch(section: ModelSection, weights: Mapping[str, Tensor]) -> str | None:
    """Why these weights are not of this model, in words; None if they are."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in GPT(section).state_dict().items()}
    odd = sorted(shapes.keys() ^ weights.keys())
    if odd:
        whose = "the model lacks" if odd[0] in weights else "the weights lack"
        return f"{whose} {odd[0]}"
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            return f"{name} has shape {tuple(weights[name].shape)}, not {tuple(shape)}"
    return None


def write_hf(trained: Trained, folder: Path) -> None:
    """Fill a folder that transformers' AutoModelForCausalLM and AutoTokenizer open.

    Raises:
        UserError: transformers has no such architecture; says why.
    """
    weights = hf_weights(trained.section, trained.weights)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", hf_config(trained.section, trained.tokenizer))
    special_ids = {f"{role}_token_id": trained.tokenizer.bos for role in ("bos", "eos", "pad")}
    _write(folder / "generation_config.json", special_ids)
    _write(folder / "tokenizer.json", hf_tokenizer(trained.tokenizer))
    _write(folder / "tokenizer_config.json", _hf_tokenizer_config(trained.section))
    file = folder / "model.safetensors"
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    file.chmod((folder / "config.json").stat().st_mode)  # safetensors lets only this user read


def hf_weights(section: ModelSection, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by transformers' names; the values are the same.

    Raises:
        UserError: The model has residual scalars, which would be dropped.
    """
    if section.residual_scalars:
        raise UserError(
            "this model has residual scalars (model.residual_scalars), which the NanoChat of "
            "transformers does not know, so its text would be another model's: use "
            "--format nanochat, which keeps them"
        )
    named = {"model.embed_tokens.weight": weights["transformer.wte.weight"]}
    for layer in range(section.depth):
        for ours, theirs in HF_LAYER.items():
            weight = weights[f"transformer.h.{layer}.{ours}.weight"]
            named[f"model.layers.{layer}.{theirs}.weight"] = weight
    return {**named, "lm_head.weight": weights["lm_head.weight"]}


def hf_config(section: ModelSection, tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says: every number that decides a logit, none left to a default."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": section.vocab_size,
        "hidden_size": section.width,
        "intermediate_size": 4 * section.width,
        "num_hidden_layers": section.depth,
        "num_attention_heads": section.heads,
        "num_key_value_heads": section.kv_heads or section.heads,
        "max_position_embeddings": section.sequence_length,
        "hidden_act": "relu2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": NORM_EPS,  # transformers' own default is 1e-6
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "final_logit_softcapping": SOFTCAP,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.bos,  # a document's start ends the one before
        "pad_token_id": None,  # transformers trains no row of a padding token
    }


def _hf_tokenizer_config(section: ModelSection) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "pad_token": BOS,
        "model_max_length": section.sequence_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # text that reads <|bos|> is just text, as in training
    }


def hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.json says; it gives the very tokens of `Tokenizer.encode_batch`.

    tiktoken joins the two neighbours whose union has the lowest rank; Hugging Face's tokenizers
    applies a list of joins. They agree if the list holds for every token the one join that makes
    it: any other pair of parts is never neighbours when that token's turn comes.
    """
    spelled = [_spell(token) for token in tokenizer.ranks]
    special = {"special": True, "normalized": False, "lstrip": False, "rstrip": False}
    start = {"id": BOS, "ids": [tokenizer.bos], "tokens": [BOS]}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated"}
    to_letters = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.bos, "content": BOS, "single_word": False, **special}],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {"type": "ByteLevel", **to_letters}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special_piece(), _text_piece("A", 0)],
            "pair": [_special_piece(), _text_piece("A", 0), _text_piece("B", 1)],
            "special_tokens": {BOS: start},
        },
        "decoder": {"type": "ByteLevel", **to_letters},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is that token, as in tiktoken
            "vocab": {word: rank for rank, word in enumerate(spelled)},
            "merges": [[_spell(left), _spell(right)] for left, right in joins(tokenizer.ranks)],
        },
    }


def _special_piece() -> dict[str, Any]:
    return {"SpecialToken": {"id": BOS, "type_id": 0}}


def _text_piece(which: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": which, "type_id": kind}}


def joins(ranks: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """The two parts each token is joined from, in the order of the tokens.

    Not of a single byte, nor of a token that the joins before it do not bring down to two parts.
    """
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    for token, own in rank_of.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            found = [rank_of.get(a + b, own) for a, b in pairwise(parts)]
            lowest = min(found)
            if lowest >= own:
                break
            at = found.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def _letters() -> tuple[str, ...]:
    """The printable character that stands for each byte in a byte-level tokenizer.json (GPT-2)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in plain else next(others)) for byte in range(256))


_LETTERS = _letters()


def _spell(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def write_nanochat(trained: Trained, folder: Path) -> None:
    """Fill a folder that nanochat takes as its base directory (NANOCHAT_BASE_DIR).

    nanochat reads a torch.save of the weights and a pickled tokenizer, so these two are written;
    the pickle holds a tiktoken.Encoding made of strings, bytes and numbers, and no class of ours.
    """
    section = trained.section
    checkpoint = folder / "base_checkpoints" / f"d{section.depth}"
    tokenizer = folder / "tokenizer"
    for part in (checkpoint, tokenizer):
        part.mkdir(parents=True, exist_ok=True)
    _save(dict(trained.weights), checkpoint / f"model_{trained.step:06d}.pt")
    meta = {"step": trained.step, "model_config": nanochat_config(section)}
    _write(checkpoint / f"meta_{trained.step:06d}.json", {**meta, **(trained.note or {})})
    encoding = nanochat_encoding(trained.tokenizer, section.vocab_size)
    (tokenizer / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    sizes = torch.zeros(section.vocab_size, dtype=torch.int32)
    known = torch.from_numpy(trained.tokenizer.token_bytes)
    sizes[: len(known)] = known
    _save(sizes, tokenizer / "token_bytes.pt")


def nanochat_config(section: ModelSection) -> dict[str, Any]:
    """The arguments of nanochat's GPTConfig: of October 2025, or January 2026 with scalars."""
    config: dict[str, Any] = {
        "sequence_len": section.sequence_length,
        "vocab_size": section.vocab_size,
        "n_layer": section.depth,
        "n_head": section.heads,
        "n_kv_head": section.kv_heads or section.heads,
        "n_embd": section.width,
    }
    return {**config, "window_pattern": "L"} if section.residual_scalars else config


def nanochat_encoding(tokenizer: Tokenizer, vocab_size: int) -> tiktoken.Encoding:
    """The vocabulary as nanochat keeps it: exactly as many tokens as the model has.

    What the model has beyond ours becomes nanochat's chat tokens, then unused ones; all of them
    are untrained.
    """
    names = (BOS, *NANOCHAT_SPECIALS, *(f"<|unused_{i}|>" for i in range(vocab_size)))
    return tiktoken.Encoding(
        "rustbpe",
        pat_str=tokenizer.pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.ranks)},
        special_tokens={
            name: tokenizer.bos + i for i, name in enumerate(names[: vocab_size - tokenizer.bos])
        },
    )


def _save(content: object, path: Path) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(f"cannot write {path.name}") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
