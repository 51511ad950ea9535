"""The trainer of one site: keeps model and optimizers between orders, trains, stops when told.

Knows no clock, and no network but its own ranks: each takes an equal share of every step, their
gradients are averaged, and so they stay equal. The first is called; the others `follow` it.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from uncurtail.lm.allocator import keep_freed_memory
from uncurtail.lm.compiling import compiled
from uncurtail.lm.data import Corpus
from uncurtail.lm.micro import Micro
from uncurtail.lm.model import GPT, initial_weights
from uncurtail.lm.optim import build_optimizers, fast_bf16
from uncurtail.lm.ranks import Ranks, Word
from uncurtail.lm.schedule import rates
from uncurtail.lm.sections import ModelSection, TrainSection
from uncurtail.lm.snapshot import Snapshot, read_snapshot, write_snapshot

__all__ = [
    "NonFiniteLoss",
    "StepMetrics",
    "TrainOrder",
    "TrainResult",
    "TrainSection",
    "Trainer",
    "initial_weights",
]


class NonFiniteLoss(RuntimeError):  # noqa: N818 - says what happened, as StopIteration does
    """Loss or gradient is not finite; the optimizer has not moved."""


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """Steps to take: `intervals` of (epoch, start, stop), in order.

    `tokens_at_start` is the run's token count at the base version; each local step advances the
    clock by `sites` batches, since that many sites train at once.
    """

    intervals: tuple[tuple[int, int, int], ...]
    tokens_at_start: int
    sites: int

    def tokens_before(self, done: int, step_tokens: int) -> int:
        """The run's tokens when so many of this order's steps are done, here and elsewhere."""
        return self.tokens_at_start + self.sites * done * step_tokens

    def steps(self) -> Iterator[tuple[int, int]]:
        """Each (epoch, step) of the order."""
        for epoch, start, stop in self.intervals:
            for step in range(start, stop):
                yield epoch, step


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One step: `index` counts the steps done in this order, this one included.

    `loss` is nats per token; `tokens` are this step's; `grad_norm` is before clipping.
    """

    index: int
    epoch: int
    step: int
    loss: float
    tokens: int
    lr_scale: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A prefix of an order: how much of it was trained, and the hash of exactly those tokens.

    `mean_loss` is None if the order was stopped before its first step.
    """

    steps: int
    tokens: int
    mean_loss: float | None
    token_sha256: str


class Trainer:
    """One model with its optimizers, for the whole stay of a site; a copy of it in each rank.

    Every rank makes one. Then the first calls what it needs, and the others only `follow`.
    """

    def __init__(
        self,
        model: ModelSection,
        train: TrainSection,
        corpus: Corpus,
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        if corpus.manifest.vocab_size > model.vocab_size:
            raise ValueError(
                f"{corpus.folder} has a vocabulary of {corpus.manifest.vocab_size} tokens, "
                f"the model {model.vocab_size}: prepare the data for this model"
            )
        self._ranks = ranks or Ranks()
        self._section, self._train, self._corpus = model, train, corpus
        self._device = self._ranks.device
        self._micro = Micro(train, model.sequence_length, self._ranks.size)
        if train.threads is not None:
            torch.set_num_threads(train.threads)
        if self._device.type == "cpu":
            keep_freed_memory()
        if train.deterministic:
            _be_deterministic(seed)
        bf16 = train.dtype == "bf16" or (train.dtype == "auto" and fast_bf16(self._device))
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.model = GPT(model, dtype)
        self.model.load_state_dict(initial_weights(model, seed))
        self.model.to(self._device)
        self.model.checkpoint_activations = train.checkpoint_activations
        self._loss = compiled(self.model.loss, train, self._device)
        self.optimizers = build_optimizers(self.model, train.optim, self.tokens_per_step)
        self.optimizers.compute_in(dtype)
        self._token_bytes = torch.zeros(model.vocab_size, dtype=torch.int64)
        known = torch.from_numpy(corpus.tokenizer().token_bytes)
        self._token_bytes[: len(known)] = known

    @property
    def data(self) -> Path:
        """The folder of the tokens that it trains on."""
        return self._corpus.folder

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step at this site, all ranks together."""
        return self._train.batch_sequences * self._section.sequence_length

    @property
    def micro_sequences(self) -> int:
        """How many sequences this rank takes at a time, as far as its memory is known."""
        return self._micro.size

    def train(
        self,
        order: TrainOrder,
        should_stop: Callable[[], bool],
        on_step: Callable[[StepMetrics], None],
    ) -> TrainResult:
        """Take the order's steps, one after the other, until it ends or `should_stop` turns true.

        `should_stop` is asked before each step, so what was trained is a whole number of steps
        and a prefix of the order.

        Raises:
            NonFiniteLoss: On any rank, so on all, and before the optimizer moves; the steps before
                it stay in the model.
            ValueError: The GPU's memory is too small.
            PartedError: One of several ranks cannot go on, so none can; end this process.
        """
        self._ranks.tell(Word.TRAIN, asdict(order))
        with self._ranks.together(), self._within_memory():
            return self._take_steps(order, should_stop, on_step)

    def _take_steps(
        self,
        order: TrainOrder,
        should_stop: Callable[[], bool],
        on_step: Callable[[StepMetrics], None],
    ) -> TrainResult:
        done, loss_sum, hasher = 0, 0.0, hashlib.sha256()
        for epoch, step in order.steps():
            if self._ranks.stop(should_stop):
                break
            now = rates(
                self._train.schedule,
                order.tokens_before(done, self.tokens_per_step),
                self._train.budget_tokens,
                self.tokens_per_step,
                self._train.optim.muon_momentum,
            )
            loss, grad_norm = self._gradients(epoch, step)
            self.optimizers.step(now.lr_scale, now.momentum, now.decay_scale)
            self._corpus.hash_step(hasher, epoch, step, *self._shape)
            done, loss_sum = done + 1, loss_sum + loss
            on_step(
                StepMetrics(done, epoch, step, loss, self.tokens_per_step, now.lr_scale, grad_norm)
            )
        return TrainResult(
            steps=done,
            tokens=done * self.tokens_per_step,
            mean_loss=loss_sum / done if done else None,
            token_sha256=hasher.hexdigest(),
        )

    def follow(self) -> None:
        """Do what the first rank does, step by step, until it leaves."""
        while True:
            word, body = self._ranks.hear()
            match word:
                case Word.TRAIN:
                    intervals = tuple((e, start, stop) for e, start, stop in body["intervals"])
                    order = TrainOrder(intervals, body["tokens_at_start"], body["sites"])
                    with suppress(NonFiniteLoss):  # the first rank has it, too, and says it
                        self._take_steps(order, lambda: False, lambda _: None)
                case Word.EVALUATE:
                    self._held_out()
                case Word.LOAD:
                    self._ranks.copy_from_first(self.model.state_dict().values())
                case Word.RESTORE:
                    self._ranks.copy_from_first(self.optimizers.state_dict().values())
                case Word.LEAVE:
                    return
                case _:
                    raise AssertionError(f"{word} between two orders")

    def dismiss(self) -> None:
        """Let the other ranks end; nothing can be asked of this trainer any more."""
        self._ranks.tell(Word.LEAVE)

    def evaluate(self) -> tuple[float, float]:
        """Held-out loss: nats per token, and bits per UTF-8 byte (document starts not counted).

        Raises:
            ValueError: The held-out text is shorter than one sequence, or memory is too small.
        """
        next(self._corpus.val_batches(self._section.sequence_length, 1, 1))  # or say there is none
        self._ranks.tell(Word.EVALUATE)
        with self._ranks.together(), self._within_memory():
            return self._held_out()

    def _held_out(self) -> tuple[float, float]:
        nats, bits_nats, tokens, text_bytes = self._ranks.total(self._micro.fitting(self._own_held))
        return nats / tokens, bits_nats / (math.log(2) * max(1.0, text_bytes))

    @torch.no_grad()
    def _own_held(self) -> list[float]:
        """Of this rank's part of the held-out text: nats, those of text, tokens, bytes."""
        sums = torch.zeros(4, dtype=torch.float64)
        length, wanted = self._section.sequence_length, self._train.val_sequences
        batches = self._corpus.val_batches(length, wanted, self._micro.first_size)
        for batch in islice(batches, self._ranks.rank, None, self._ranks.size):
            for inputs, targets in self._micro.pieces(batch):
                at, to = inputs.to(self._device), targets.to(self._device)
                losses = self.model.losses(at, to).cpu().double()
                sizes = self._token_bytes[targets.flatten()]
                sums += torch.tensor(
                    [losses.sum(), losses[sizes > 0].sum(), len(sizes), sizes.sum()],
                    dtype=torch.float64,
                )
        return sums.tolist()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the model; the optimizers keep their state.

        Raises:
            ValueError: Names or shapes differ, or a value is not finite; the model is unchanged.
        """
        own = self.model.state_dict()
        if own.keys() != weights.keys():
            raise ValueError(f"weights of another model: {sorted(own.keys() ^ weights.keys())[:3]}")
        for name, weight in weights.items():
            if weight.shape != own[name].shape:
                raise ValueError(
                    f"weight {name} has shape {tuple(weight.shape)}, not {tuple(own[name].shape)}"
                )
            if not bool(torch.isfinite(weight).all()):
                raise ValueError(f"weight {name} is not finite")
        for name, weight in weights.items():
            own[name].copy_(weight)
        self._ranks.tell(Word.LOAD)
        self._ranks.copy_from_first(own.values())

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's weights, float32 on the CPU, by parameter name."""
        state = self.model.state_dict()
        return {name: value.to("cpu", torch.float32, copy=True) for name, value in state.items()}

    def snapshot(self) -> Snapshot:
        """A copy of the optimizer state; the weights are the coordinator's to keep."""
        state = self.optimizers.state_dict()
        return Snapshot({n: t.detach().to("cpu", copy=True) for n, t in state.items()}, self._kind)

    def save_snapshot(self, folder: Path) -> None:
        """Write the optimizer state, atomically.

        Raises:
            OSError: The disk is full or the folder cannot be written; the old snapshot stays.
        """
        state = self.optimizers.state_dict()
        write_snapshot(
            folder, Snapshot({n: t.detach().cpu() for n, t in state.items()}, self._kind)
        )

    def load_snapshot(self, folder: Path) -> str | None:
        """Continue with a snapshot's optimizer state; returns why it was ignored, None if used."""
        state = read_snapshot(folder, self._kind)
        if isinstance(state, str):
            return state
        try:
            self.optimizers.load_state_dict(state)
        except ValueError as error:
            return str(error)
        self._ranks.tell(Word.RESTORE)
        self._ranks.copy_from_first(self.optimizers.state_dict().values())
        return None

    @contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Says in a line what to do when the GPU's memory is too small."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.optimizers.zero_grad()
            raise ValueError(
                f"{self._device} has too little memory for {self._micro.size} sequences of "
                f"{self._section.sequence_length} tokens at a time: {self._micro.remedy()}"
            ) from error

    @property
    def _kind(self) -> str:
        """What a snapshot must fit: the model's shape (rates may change between sessions)."""
        return self._section.model_dump_json()

    @property
    def _shape(self) -> tuple[int, int]:
        return self._section.sequence_length, self._train.batch_sequences

    def _own_gradients(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of this rank's share of a step, whose gradients are left in the model."""
        self.optimizers.zero_grad()
        total = torch.zeros((), device=self._device)
        for inputs, targets in self._micro.pieces(batch):
            loss = self._loss(inputs.to(self._device), targets.to(self._device)) / self._micro.count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _gradients(self, epoch: int, step: int) -> tuple[float, float]:
        """Mean loss of one step and norm of its gradient, which is left clipped in the model.

        Raises:
            NonFiniteLoss: One of the two is not finite.
        """
        # the sequences [B s, B s + B) of step s, cut into one piece for each rank
        piece = step * self._ranks.size + self._ranks.rank
        batch = self._corpus.batch(epoch, piece, self._section.sequence_length, self._micro.share)
        total = self._micro.fitting(lambda: self._own_gradients(batch))
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        self._ranks.average([total, *gradients])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._train.grad_clip)
        if not math.isfinite(float(total)) or not math.isfinite(float(norm)):
            self.optimizers.zero_grad()
            raise NonFiniteLoss(
                f"loss {float(total)}, gradient norm {float(norm)} at epoch {epoch}, step {step}"
            )
        return float(total), float(norm)


def _be_deterministic(seed: int) -> None:
    """From here on this process computes the same bits from the same numbers, or raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
