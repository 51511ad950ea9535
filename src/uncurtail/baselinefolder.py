"""What a baseline leaves in its folder: its settings, how far it came, its weights, its steps."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncurtail import config
from uncurtail.config import Config, ConfigError

if TYPE_CHECKING:
    from uncurtail.lm.trainer import StepMetrics

RESOLVED_FILE, PROGRESS_FILE, STEPS_FILE = "resolved.json", "progress.json", "steps.csv"
SUMMARY_FILE, WEIGHTS_FILE = "summary.json", "weights.safetensors"
COLUMNS = ("step", "tokens", "loss", "lr_scale", "grad_norm", "train_s")
# What makes it this baseline and no other. Rates, budget and how it is computed may be changed
# on the way.
FIXED = ("seed", "model", "data", "train.batch_sequences", "train.val_sequences")
MOVABLE = ("data.folder",)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a baseline has come. `train_s` is time in steps, over all its sessions."""

    steps: int = 0
    train_s: float = 0.0
    # (tokens, nats per token, bits per byte) of the held-out text
    evaluations: tuple[tuple[int, float, float], ...] = ()

    @classmethod
    def load(cls, out: Path) -> "Progress | None":
        """What was saved last; None if nothing was."""
        try:
            body = json.loads((out / PROGRESS_FILE).read_text(encoding="utf-8"))
            return cls(
                body["steps"],
                body["train_s"],
                tuple((tokens, nats, bits) for tokens, nats, bits in body["evaluations"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{out / PROGRESS_FILE} cannot be read ({error!r}): choose another --out"
            ) from None


def saved(out: Path, steps: int) -> Path:
    """Where weights and optimizer state after so many steps are."""
    return out / "saved" / str(steps)


def changed_settings(out: Path, settings: Config) -> list[str]:
    """What is asked for now, and was not when this baseline began: `train.seed 1 -> 2`.

    Raises:
        ConfigError: What it began with cannot be read.
    """
    path = out / RESOLVED_FILE
    try:
        before = _flat(config.parse(json.loads(path.read_text(encoding="utf-8")), str(path)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --out") from None
    now = _flat(settings)
    return [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if key.startswith(FIXED) and key not in MOVABLE and before.get(key) != now.get(key)
    ]


def _flat(settings: Config) -> dict[str, Any]:
    """Every setting by its dotted key."""
    found: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        else:
            found[key] = value

    walk(settings.model_dump(mode="json"), "")
    return found


class Steps:
    """steps.csv: a row a step, those beyond the saved step cut off first."""

    def __init__(self, path: Path, steps: int) -> None:
        kept = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdecimal()][:steps]
        self._file = path.open("w", encoding="utf-8", newline="", buffering=1)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerows([COLUMNS, *kept])

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, step: int, tokens: int, metrics: "StepMetrics", train_s: float) -> None:
        """Append a step."""
        self._rows.writerow(
            (step, tokens, metrics.loss, metrics.lr_scale, metrics.grad_norm, round(train_s, 3))
        )


def read_losses(path: Path) -> list[float]:
    """The loss of each step, in order."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
