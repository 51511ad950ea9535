"""Text to tokens and back: byte-pair encoding, trained by rustbpe, run by tiktoken."""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import rustbpe
import tiktoken
from numpy.typing import NDArray

from uncurtail.errors import UserError

BOS = "<|bos|>"
# As GPT-4's, but digits in pairs, not triples: nanochat found that a small vocabulary wants this.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Tokenizer:
    """A byte-pair vocabulary: `ranks[i]` is the bytes of token i; the special tokens follow."""

    pattern: str
    ranks: tuple[bytes, ...]

    @property
    def bos(self) -> int:
        """The token that starts every document."""
        return len(self.ranks)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special one included."""
        return len(self.ranks) + 1

    @cached_property
    def sha256(self) -> str:
        """Identity of the vocabulary: equal hashes give equal tokens."""
        return hashlib.sha256(self._content().encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes each token stands for, shape (vocab_size,); 0 for the special token."""
        return np.array([*map(len, self.ranks), 0], dtype=np.int64)

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "uncurtail",
            pat_str=self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens={BOS: self.bos},
        )

    def encode_batch(self, documents: Sequence[str], threads: int = 2) -> list[list[int]]:
        """Each document's tokens, the start token first; text that reads <|bos|> is just text."""
        encoded = self._encoding.encode_ordinary_batch(list(documents), num_threads=threads)
        return [[self.bos, *tokens] for tokens in encoded]

    def encode_arrays(
        self, documents: Sequence[str], threads: int = 2
    ) -> Iterator[NDArray[np.uint32]]:
        """As `encode_batch`, but arrays, made without a Python integer for each token."""
        start = np.array([self.bos], dtype=np.uint32)

        def encode(text: str) -> NDArray[np.uint32]:
            tokens = self._encoding.encode_to_numpy(text, disallowed_special=())
            return np.concatenate([start, tokens])

        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(encode, documents)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; a character cut in half becomes U+FFFD."""
        return self._encoding.decode(list(tokens))

    def save(self, path: Path) -> None:
        """Write as JSON with its own hash, atomically."""
        content = {**json.loads(self._content()), "sha256": self.sha256}
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(content, indent=0), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            UserError: There is none, or it is damaged; names it and what to do.
        """
        remedy = f"{path} is not a whole tokenizer file: delete its folder and prepare the data"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            ranks = tuple(base64.b64decode(token, validate=True) for token in content["ranks"])
            tokenizer, wanted = cls(content["pattern"], ranks), content["sha256"]
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such tokenizer; `uncurtail tokenizer train` makes one"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{remedy} again ({error!r})") from error
        if tokenizer.sha256 != wanted:
            raise UserError(f"{remedy} again (its SHA-256 is not the one it names)")
        return tokenizer

    def _content(self) -> str:
        ranks = [base64.b64encode(token).decode("ascii") for token in self.ranks]
        content = {"pattern": self.pattern, "ranks": ranks, "specials": {BOS: self.bos}}
        return json.dumps(content, sort_keys=True)


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` tokens (fewer if the text offers fewer merges).

    Deterministic: the same documents in the same order give the same tokenizer.

    Raises:
        UserError: `vocab_size` cannot hold the 256 bytes and the special token.
    """
    if vocab_size < 257:
        raise UserError(f"vocab_size {vocab_size} is below 257: 256 bytes and {BOS}")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(documents), vocab_size - 1, pattern=PATTERN)
    by_rank = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    assert [rank for rank, _ in by_rank] == list(range(len(by_rank))), "ranks have a gap"
    return Tokenizer(PATTERN, tuple(token for _, token in by_rank))
