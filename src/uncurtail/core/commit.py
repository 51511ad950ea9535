"""The commit: the moment when a round's model and both ledgers become durable together.

A commit is one JSON object, named by its version and written with put-if-absent. It names its
parent by hash, so the chain proves itself; everything else in a run folder can be derived.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uncurtail.core.leases import FreeSteps, Interval


@dataclass(frozen=True, slots=True)
class Accepted:
    """One update that a commit counts: the exact steps, and the hash of their tokens."""

    site: str
    session: int
    intervals: tuple[Interval, ...]
    steps: int
    tokens: int
    token_sha256: str
    update_sha256: str
    mean_loss: float | None


@dataclass(frozen=True, slots=True)
class Commit:
    """A model version. `model` and `outer` are object keys; `outer` holds the outer momentum."""

    run: str
    version: int
    epoch: int
    round: int
    parent_sha256: str | None
    t: float
    wall_s: float
    model: str
    outer: str | None
    tokens: int
    free: FreeSteps
    updates: tuple[Accepted, ...] = ()
    ledger: Mapping[str, Any] = field(default_factory=dict)
    event_offset: int = 0

    def encode(self) -> bytes:
        """Canonical JSON: the same commit is the same bytes."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False, indent=1).encode()

    def sha256(self) -> str:
        """The commit's name in its child."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> "Commit":
        """The commit of these bytes.

        Raises:
            ValueError: They are no commit.
        """
        try:
            body: dict[str, Any] = json.loads(data)
            free = body.pop("free")
            updates = tuple(
                Accepted(**{**item, "intervals": _intervals(item["intervals"])})
                for item in body.pop("updates")
            )
            return cls(
                **body,
                updates=updates,
                free=FreeSteps(
                    free["steps_per_epoch"], free["next_epoch"], _intervals(free["intervals"])
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a commit: {error}") from error


def key(version: int) -> str:
    """Where the commit of a version lives in the store."""
    return f"commits/{version:08d}.json"


def _intervals(items: Any) -> tuple[Interval, ...]:
    return tuple((int(a), int(b), int(c)) for a, b, c in items)
