"""A trained model out of a run folder, for other tools or as text; the run is only read."""

import math
import os
import shutil
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from uncurtail.datanote import noted_data
from uncurtail.errors import UserError
from uncurtail.lm.export import Trained, write_hf, write_nanochat
from uncurtail.lm.manifest import TOKENIZER_FILE
from uncurtail.lm.sample import continue_text, open_model
from uncurtail.lm.tokenizer import Tokenizer
from uncurtail.modelsource import Source, find_model

Format = Literal["hf", "nanochat"]


def export_model(source: Source, format_: Format, out: Path | None) -> str:
    """Write a model in another tool's form; what to print.

    Raises:
        UserError: There is no such model, or it has no such form, or the folder is in use.
    """
    trained = open_trained(source)
    out = out or source.folder().path / "export" / f"{format_}-{trained.step:06d}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: remove it, or name another folder with --out")
    place = out.resolve()
    if place in (Path.cwd(), Path(place.anchor)):
        raise UserError(f"{out} is where you are: name a new folder with --out")
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if format_ == "hf":
            write_hf(trained, unfinished)
        else:
            write_nanochat(trained, unfinished)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}: make room, or use --out") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return f"{out}\nNext: {_next(format_, out)}"


def sample_text(source: Source, prompt: str, tokens: int, *, temperature: float, seed: int) -> str:
    """The prompt, continued by a model.

    Raises:
        UserError: There is no such model, or no such temperature.
    """
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature}: give a number from 0 on; 0.8 is usual")
    trained = open_trained(source)
    model = open_model(trained.section, trained.weights)
    return continue_text(
        model, trained.tokenizer, prompt, tokens, temperature=temperature, seed=seed
    )


def open_trained(source: Source) -> Trained:
    """The model that is meant, and its vocabulary.

    Raises:
        UserError: One of the many things that can be missing, each with its remedy.
    """
    found = find_model(source)
    train, model, tokens = found.config.train, found.config.model, found.tokens
    data = noted_data(found.folder.path)
    try:
        tokenizer = Tokenizer.load(data / TOKENIZER_FILE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the vocabulary of {found.folder.path} cannot be read: {error}: `uncurtail data "
            "prepare` makes it again"
        ) from None
    return Trained(
        section=model,
        weights=found.weights,
        tokenizer=tokenizer,
        step=(tokens or 0) // (train.batch_sequences * model.sequence_length),
        note={"trained_by": "uncurtail", "run": found.folder.run_id, "tokens": tokens},
    )


def _next(format_: Format, out: Path) -> str:
    if format_ == "hf":
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
    return f"NANOCHAT_BASE_DIR={out} in nanochat, whose model source is then `base`"
