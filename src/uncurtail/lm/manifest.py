"""What a prepared data folder holds: written last, so a folder with a manifest is whole."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uncurtail.errors import UserError

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Shard:
    """One file of little-endian tokens."""

    name: str
    tokens: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A data folder's content; two folders with equal `sha256` hold equal tokens.

    `inputs_sha256` identifies what the folder was made from; `split` says in words which
    documents are held out; `val_bytes` is the UTF-8 size of the held-out documents; `origin` says
    which version of a downloaded corpus it is.
    """

    inputs_sha256: str
    tokenizer_sha256: str
    vocab_size: int
    token_bytes: int
    seed: int
    split: str
    train: tuple[Shard, ...]
    val: Shard
    train_bytes: int
    val_bytes: int
    origin: str = ""

    @property
    def train_tokens(self) -> int:
        """Tokens to train on in one epoch."""
        return sum(shard.tokens for shard in self.train)

    @property
    def val_tokens(self) -> int:
        """Tokens held out."""
        return self.val.tokens

    @property
    def mean_bytes_per_token(self) -> float:
        """UTF-8 bytes per token over training and held-out text."""
        return (self.train_bytes + self.val_bytes) / max(1, self.train_tokens + self.val_tokens)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """How a token is stored."""
        return np.dtype(f"<u{self.token_bytes}")

    @property
    def sha256(self) -> str:
        """Identity of the content, for a coordinator to compare its sites by."""
        return hashlib.sha256(json.dumps(self._body(), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write atomically: a reader sees the whole manifest or none."""
        content = {
            **self._body(),
            "train_tokens": self.train_tokens,
            "val_tokens": self.val_tokens,
            "mean_bytes_per_token": self.mean_bytes_per_token,
            "sha256": self.sha256,
        }
        temporary = folder / f"{MANIFEST_FILE}.tmp"
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(folder / MANIFEST_FILE)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            UserError: There is no manifest, or it is damaged; names the file and what to do.
        """
        path = folder / MANIFEST_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls(
                **{key: content[key] for key in cls.__dataclass_fields__ if key not in _SPECIAL},
                origin=content.get("origin", ""),
                train=tuple(Shard(**shard) for shard in content["train"]),
                val=Shard(**content["val"]),
            )
            whole = manifest.sha256 == content["sha256"]
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no data: run `uncurtail data prepare`") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete it and prepare again") from error
        if not whole:
            raise UserError(f"{path} is damaged: delete it and prepare again")
        return manifest

    def damage(self, folder: Path, *, fetched: bool = False) -> str | None:
        """What is wrong with the folder's files by their sizes, or None (fast; reads no tokens).

        With `fetched`, shards may be missing: they come when they are wanted.
        """
        for shard in (*self.train, self.val):
            path = folder / shard.name
            size = path.stat().st_size if path.exists() else None
            if size != shard.size_bytes and not (fetched and size is None):
                return f"{shard.name} has {size} bytes, not {shard.size_bytes}"
        if not (folder / TOKENIZER_FILE).exists():
            return f"{TOKENIZER_FILE} is missing"
        return None

    def corruption(self, folder: Path, told: Callable[[float], None]) -> str | None:
        """What is wrong with the folder's files by their hashes, or None (reads all of them)."""
        reason = self.damage(folder)
        if reason is not None:
            return reason
        total = sum(shard.size_bytes for shard in (*self.train, self.val))
        done = 0
        for shard in (*self.train, self.val):
            if file_sha256(folder / shard.name) != shard.sha256:
                return f"{shard.name} is corrupt: its SHA-256 is not the manifest's"
            done += shard.size_bytes
            told(done / total)
        return None

    def _body(self) -> dict[str, Any]:
        """The fields; an empty origin is left out, as manifests had none at first."""
        body = asdict(self)
        if not self.origin:
            del body["origin"]
        return body


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SPECIAL = ("train", "val", "origin")
