"""The same model, data order and loop on one always-on site: what a run is compared with.

One process, or the ranks of one machine under torchrun; no Flower, no Redis, no coordinator. The
first rank does all that is seen. `OUT/saved/STEPS/` holds weights and optimizer state together,
`OUT/progress.json` names the newest of them and is replaced last, so a crash costs no more than
the steps since.
"""

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from uncurtail import config
from uncurtail.adapters import clock
from uncurtail.baselinefolder import (
    PROGRESS_FILE,
    RESOLVED_FILE,
    STEPS_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    Progress,
    Steps,
    changed_settings,
    read_losses,
    saved,
)
from uncurtail.config import Config, ConfigError
from uncurtail.datanote import NOTE_FILE, note_data
from uncurtail.runfolder import write_atomic

if TYPE_CHECKING:
    from uncurtail.lm.ranks import Ranks
    from uncurtail.lm.trainer import StepMetrics, Trainer

SAVE_EVERY_WALL_S = 900.0
TELL_EVERY_WALL_S = 5.0
RECENT_STEPS = 20


@dataclass(frozen=True, slots=True)
class Limit:
    """When to end: after so many steps, and this session after so many minutes."""

    steps: int | None = None
    minutes: float | None = None


def run_baseline(
    path: Path, overrides: list[str], out: Path | None, limit: Limit, *, resume: bool
) -> int:
    """Train an experiment's model on one always-on site; returns the exit code.

    Raises:
        UserError: Something in the input must be mended first.
    """
    settings = config.load(path, overrides)
    place = out or Path("baselines") / settings.name
    progress = Progress.load(place)
    if progress is not None and not resume:
        raise ConfigError(
            f"{place} holds a baseline: --resume goes on with it, or name another --out"
        )
    if progress is None and resume:
        raise ConfigError(f"{place} holds no baseline to go on with: leave out --resume")
    changed = [] if progress is None else changed_settings(place, settings)
    if changed:
        raise ConfigError(
            f"{place} began as another experiment ({', '.join(changed)}): --resume with what it "
            "began with, or name another --out"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((place / "compiled").resolve()))

    import torch

    from uncurtail.lm.ranks import Ranks

    try:
        ranks = Ranks.join("cuda" if torch.cuda.is_available() else "cpu")
        trainer, steps_per_epoch = _trainer(settings, ranks)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not ranks.first:
        _leave_signals_to_the_first()
        trainer.follow()
        ranks.end()
    try:
        given = [str(path), *(word for override in overrides for word in ("--set", override))]
        first = _Baseline(settings, place, trainer, ranks, steps_per_epoch, shlex.join(given))
        code = first.run(progress, limit)
    except OSError as error:
        trainer.dismiss()
        ranks.leave()
        raise ConfigError(
            f"{place}: {error.strerror or error}: make room, then start it again; what was saved "
            "is still there"
        ) from None
    except ConfigError:  # raised between two orders only: the others wait for a word
        trainer.dismiss()
        ranks.leave()
        raise
    ranks.end(code)
    return code


def _trainer(settings: Config, ranks: "Ranks") -> "tuple[Trainer, int]":
    """The trainer of this rank, and how many steps its corpus has."""
    from uncurtail.datacommands import prepare_data
    from uncurtail.lm.data import Corpus
    from uncurtail.lm.trainer import Trainer

    # the ranks take turns; whoever comes first does it
    corpus = Corpus.open(prepare_data(settings, None, Console(quiet=not ranks.first)))
    train, length = settings.train, settings.model.sequence_length
    steps_per_epoch = corpus.steps_per_epoch(length, train.batch_sequences)
    if steps_per_epoch < 1:
        raise ConfigError(
            "the corpus is smaller than one step: lower train.batch_sequences or "
            "model.sequence_length, or prepare more data"
        )
    return Trainer(settings.model, train, corpus, settings.seed, ranks), steps_per_epoch


@dataclass(slots=True)
class _Baseline:
    """The first rank of a baseline, or its only process."""

    settings: Config
    out: Path
    trainer: "Trainer"
    ranks: "Ranks"
    steps_per_epoch: int
    arguments: str  # of the command line: the experiment and what was set
    console: Console = field(default_factory=Console)

    def run(self, progress: Progress | None, limit: Limit) -> int:
        """Train until the budget, the limit or the user ends it; save; sum up."""
        self.out.mkdir(parents=True, exist_ok=True)
        if progress is None:  # whatever was begun here and never saved does not bind anyone
            (self.out / NOTE_FILE).unlink(missing_ok=True)
        note_data(self.out, self.trainer.data)
        write_atomic(self.out / RESOLVED_FILE, config.dump(self.settings))
        if progress is None:
            now = self._evaluated(Progress())
        else:
            now = progress
            self._restore(now)
        asked = _Asked()
        now = self._train(now, limit, asked)
        self.trainer.dismiss()
        wanted = self._wanted(limit)
        self._sum_up(now, finished=now.steps >= wanted)
        if now.steps >= wanted:
            same = "  (the same tokens, on elastic sites)" if limit.steps is None else ""
            self._say(f"Next: uncurtail run {self.arguments}{same}")
            return 0
        self._say(f"Stopped. {self._again(limit)}")
        return 130 if asked.now else 0

    def _again(self, limit: Limit) -> str:
        """How to go on; a session's minutes are its own."""
        steps = "" if limit.steps is None else f" --steps {limit.steps}"
        out = shlex.quote(str(self.out))
        command = f"uncurtail baseline {self.arguments}{steps} --out {out}"
        if (self.out / PROGRESS_FILE).exists():
            return f"Resume with: {command} --resume"
        return f"Nothing was trained yet; start with: {command}"

    def _train(self, now: Progress, limit: Limit, asked: "_Asked") -> Progress:
        from uncurtail.lm.trainer import NonFiniteLoss, TrainOrder

        wanted = self._wanted(limit)
        began = clock.monotonic()
        ends = began + (float("inf") if limit.minutes is None else 60.0 * limit.minutes)
        with Steps(self.out / STEPS_FILE, now.steps) as rows:
            while now.steps < wanted and not asked.now and clock.monotonic() < ends:
                started = clock.monotonic()
                pause = min(ends, started + SAVE_EVERY_WALL_S)
                order = TrainOrder(
                    intervals(now.steps, wanted - now.steps, self.steps_per_epoch),
                    now.steps * self.trainer.tokens_per_step,
                    sites=1,
                )
                tell = self._teller(now, wanted, started, rows)
                try:
                    result = self.trainer.train(order, asked.or_after(pause), tell)
                except NonFiniteLoss as error:
                    raise ConfigError(
                        f"{error}: nothing was saved since step {now.steps}; lower the learning "
                        "rates (train.optim) and --resume"
                    ) from None
                except ValueError as error:
                    raise ConfigError(str(error)) from None
                spent_s = now.train_s + clock.monotonic() - started
                now = replace(now, steps=now.steps + result.steps, train_s=spent_s)
                now = self._evaluated(now)
                self._save(now)
        return now

    def _teller(
        self, before: Progress, wanted: int, started: float, rows: "Steps"
    ) -> "Callable[[StepMetrics], None]":
        """Writes each step down, and says every few seconds how it goes."""
        said, said_at = 0, started

        def tell(metrics: "StepMetrics") -> None:
            nonlocal said, said_at
            now = clock.monotonic()
            step = before.steps + metrics.index
            rows.add(step, step * metrics.tokens, metrics, before.train_s + now - started)
            if now - said_at < TELL_EVERY_WALL_S and step < wanted:
                return
            rate = (metrics.index - said) / max(1e-9, now - said_at)
            said, said_at = metrics.index, now
            self._say(
                f"step {step:,} of {wanted:,}   loss {metrics.loss:.3f}   "
                f"{rate * metrics.tokens:,.0f} tokens/s   {(wanted - step) / rate / 60:.1f} min"
            )

        return tell

    def _evaluated(self, now: Progress) -> Progress:
        """With the held-out loss of the model as it is; the record keeps one a token count."""
        try:
            nats, bits = self.trainer.evaluate()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        tokens = now.steps * self.trainer.tokens_per_step
        self._say(f"after {tokens:,} tokens: held-out loss {nats:.4f}, {bits:.4f} bits per byte")
        kept = tuple(e for e in now.evaluations if e[0] < tokens)
        return replace(now, evaluations=(*kept, (tokens, nats, bits)))

    def _save(self, now: Progress) -> None:
        """Weights and optimizer state into a folder of their own; then the record that names it."""
        from uncurtail.lm.checkpoint import encode_weights

        folder = saved(self.out, now.steps)
        shutil.rmtree(folder, ignore_errors=True)
        self.trainer.save_snapshot(folder)
        with (folder / WEIGHTS_FILE).open("wb") as file:
            file.write(encode_weights(self.trainer.weights()))
            file.flush()
            os.fsync(file.fileno())  # before the record that names them
        write_atomic(self.out / PROGRESS_FILE, json.dumps(asdict(now)))
        for old in folder.parent.iterdir():
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def _restore(self, now: Progress) -> None:
        from uncurtail.lm.checkpoint import decode_weights

        folder = saved(self.out, now.steps)
        try:
            self.trainer.load(decode_weights((folder / WEIGHTS_FILE).read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder} cannot be resumed from: {error}") from None
        reason = self.trainer.load_snapshot(folder)
        if reason is not None:
            raise ConfigError(f"{folder} cannot be resumed from: {reason}")

    def _sum_up(self, now: Progress, *, finished: bool) -> None:
        newest, final = saved(self.out, now.steps) / WEIGHTS_FILE, self.out / WEIGHTS_FILE
        if newest.exists():
            final.unlink(missing_ok=True)
            with suppress(OSError):
                os.link(newest, final)
            if not final.exists():
                shutil.copyfile(newest, final)
        tokens = now.steps * self.trainer.tokens_per_step
        rows = read_losses(self.out / STEPS_FILE)[-RECENT_STEPS:]
        summary: dict[str, Any] = {
            "experiment": self.settings.name,
            "finished": finished,
            "steps": now.steps,
            "tokens": tokens,
            "train_s": round(now.train_s, 3),
            "tokens_per_s": round(tokens / now.train_s, 1) if now.train_s else None,
            "train_loss": sum(rows) / len(rows) if rows else None,
            "evaluations": [
                {"tokens": tokens, "val_loss": nats, "bits_per_byte": bits}
                for tokens, nats, bits in now.evaluations
            ],
            "val_loss": now.evaluations[-1][1],
            "bits_per_byte": now.evaluations[-1][2],
            "ranks": self.ranks.size,
            "device": str(self.ranks.device),
        }
        write_atomic(self.out / SUMMARY_FILE, json.dumps(summary, indent=1))
        self._say(f"{tokens:,} tokens in {now.train_s:,.0f} s: {self.out / SUMMARY_FILE}")

    def _wanted(self, limit: Limit) -> int:
        tokens, batch = self.settings.train.budget_tokens, self.trainer.tokens_per_step
        return limit.steps if limit.steps is not None else -(-tokens // batch)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def intervals(first: int, count: int, steps_per_epoch: int) -> tuple[tuple[int, int, int], ...]:
    """Steps [first, first + count) of a run, as (epoch, start, stop): epoch after epoch."""
    found, last = [], first + count
    while first < last:
        epoch, start = divmod(first, steps_per_epoch)
        stop = min(steps_per_epoch, start + last - first)
        found.append((epoch, start, stop))
        first += stop - start
    return tuple(found)


class _Asked:
    """Whether the user wants an end: SIGINT or SIGTERM. A second one ends at once."""

    def __init__(self) -> None:
        self.now = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def or_after(self, until: float) -> Callable[[], bool]:
        """Whether it is asked for, or later than this (monotonic)."""
        return lambda: self.now or clock.monotonic() >= until

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.now = True
        signal.signal(number, signal.SIG_DFL)


def _leave_signals_to_the_first() -> None:
    """A rank that ended by itself in mid-step would take the others with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
