"""The settings of model, data and training.

Apart from the code that reads them only because `uncurtail plan` loads every section and must not
import torch. Each belongs to the module that re-exports it.
"""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from uncurtail.core.section import Section

HEAD_SIZE = 128


class ModelSection(Section):
    """The size of the network; `kv_heads` None means as many as query heads.

    `residual_scalars` adds two learned scalars a layer (nanochat of January 2026): what to multiply
    the residual stream with, and how much of the embedding to add to it. Such a model is another
    architecture, which transformers does not know, so it cannot be exported there.
    """

    depth: int = Field(default=4, gt=0)
    vocab_size: int = Field(default=4096, gt=1)
    sequence_length: int = Field(default=256, gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    residual_scalars: bool = False

    @property
    def width(self) -> int:
        """Size of the residual stream: 64 per layer."""
        return 64 * self.depth

    @property
    def heads(self) -> int:
        """Query heads per layer, of size 128 where the width allows it, else smaller."""
        return math.ceil(self.width / HEAD_SIZE)

    @property
    def head_size(self) -> int:
        """Features per head."""
        return self.width // self.heads

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads or self.head_size % 2:
            raise ValueError(
                f"depth {self.depth} gives width {self.width}, which {self.heads} heads of even "
                f"size cannot share: use depth {self.depth + 1}"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads {self.kv_heads} does not divide the {self.heads} query heads"
            )
        return self


class DataSection(Section):
    """Which text to train on, and where its tokens go.

    `files` are globs of Parquet, JSON Lines or text, their text in `text_column`; `shards` is how
    many Parquet files of `repo` to take; `documents` is for the grammar, which has no end. With a
    `tokenizer` file none is trained; else one is, on the first `tokenizer_chars` characters (None:
    by the size of the vocabulary). `folder` None is one in the user's cache.
    """

    source: Literal["embedded", "grammar", "files", "fineweb-edu"] = "embedded"
    documents: int | None = Field(default=None, gt=0)
    files: tuple[str, ...] = ()
    text_column: str = "text"
    repo: str = "karpathy/fineweb-edu-100b-shuffle"
    revision: str = "main"
    shards: int | None = Field(default=None, gt=0)
    tokenizer: Path | None = None
    tokenizer_chars: int | None = Field(default=None, gt=0)
    shard_tokens: int = Field(default=1 << 24, gt=0)  # 32 MB in 16 bits: a unit to copy or to lose
    folder: Path | None = None
    val_share: float = Field(default=0.02, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _source_has_what_it_reads(self) -> Self:
        if (self.source == "files") != bool(self.files):
            raise ValueError("source 'files' and files (globs of text) go together: give both")
        if self.documents is not None and self.source != "grammar":
            raise ValueError(
                f"documents is how many the grammar makes up, and source is {self.source!r}: leave "
                "documents out, or set source 'grammar'"
            )
        if (self.source == "fineweb-edu") != (self.shards is not None):
            raise ValueError(
                "source 'fineweb-edu' and shards (how many Parquet files) go together: give both"
            )
        return self


class OptimSection(Section):
    """Learning rates at the schedule's top, and how the matrices are updated.

    What is scaled, all else is as given:
    `embedding_lr` and `head_lr` are for width 768 and go with (width / 768)^-0.5, as nanochat does:
    Adam moves every feature alike, so what the features sum to grows with the width. Muon needs
    none of that, its update has the same spectral norm at every width.
    With `reference_batch_tokens`, every rate is for an inner step of that many tokens at one site,
    and goes with the square root of the batch (2405.14578 for Adam; for Muon an assumption that
    nanochat makes, too, with 524,288 as the reference).
    With `reference_depth`, `weight_decay` is for that depth and goes with its inverse square, as in
    nanochat of January 2026 (reference 12).
    """

    matrix_lr: float = Field(default=0.02, gt=0)
    embedding_lr: float = Field(default=0.2, gt=0)
    head_lr: float = Field(default=0.004, gt=0)
    # of x0_lambdas; resid_lambdas, which compound through the layers, take a hundredth of it
    scalar_lr: float = Field(default=0.5, gt=0)
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = Field(default=1e-10, gt=0)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    muon_steps: int = Field(default=5, gt=0, lt=100)
    orthogonalization: Literal["newton-schulz", "polar-express"] = "newton-schulz"
    variance_reduction: bool = False  # NorMuon: every neuron of a matrix moves equally far
    variance_beta: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)  # decoupled, of the matrices only
    cautious_weight_decay: bool = False  # only where the update shrinks the weight as well
    reference_batch_tokens: int | None = Field(default=None, gt=0)
    reference_depth: int | None = Field(default=None, gt=0)


class ScheduleSection(Section):
    """A trapezoid over the token budget: warm up, hold, warm down; all as shares of the budget.

    Weight decay falls in a straight line, over all of it, to `final_decay_share` of where it began.
    """

    warmup_share: float = Field(default=0.01, ge=0, le=1)
    warmdown_share: float = Field(default=0.4, ge=0, le=1)
    final_lr_share: float = Field(default=0.0, ge=0, le=1)
    momentum_ramp_share: float = Field(default=0.1, ge=0, le=1)
    final_decay_share: float = Field(default=0.0, ge=0, le=1)


class TrainSection(Section):
    """How to train; a global step is `batch_sequences` at every site, whatever its ranks.

    Only `micro_sequences` (at most so many at a time in each rank; None: as many as its memory
    allows), `threads` (None: torch's choice), `compile` ("auto": on a GPU, unless `deterministic`)
    and `checkpoint_activations` (less memory, a quarter to a third more time) are a site's own.
    `dtype` "auto" is bf16 where the device computes it fast. `deterministic`: the same bits again
    from the same start, at some cost in speed.
    """

    budget_tokens: int = Field(gt=0)
    batch_sequences: int = Field(default=8, gt=0)
    micro_sequences: int | None = Field(default=None, gt=0)
    grad_clip: float = Field(default=1.0, gt=0)
    val_sequences: int = Field(default=64, gt=0)
    threads: int | None = Field(default=None, gt=0)
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    deterministic: bool = False
    compile: Literal["never", "auto", "always"] = "auto"
    checkpoint_activations: bool = False
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()

    @model_validator(mode="after")
    def _micro_fits(self) -> Self:
        if self.micro_sequences is not None and self.batch_sequences % self.micro_sequences:
            raise ValueError(
                f"micro_sequences {self.micro_sequences} does not divide "
                f"batch_sequences {self.batch_sequences}"
            )
        return self
