"""Orders and replies as one JSON line: the same text in a Flower message and on the socket."""

import json
from dataclasses import asdict, fields
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, with_config

from uncurtail.core.rounds import Order, Reply

Message = TypeVar("Message", Order, Reply)

_EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_ORDERS = TypeAdapter(with_config(_EXACT)(Order))
_REPLIES = TypeAdapter(with_config(_EXACT)(Reply))


def encode(message: Order | Reply) -> str:
    """One line of JSON without a newline inside."""
    return json.dumps(asdict(message), allow_nan=False)


def decode_order(text: str) -> Order:
    """The order of a line.

    Raises:
        ValueError: It is none of this version.
    """
    return _decode(text, Order, _ORDERS)


def decode_reply(text: str) -> Reply:
    """The reply of a line.

    Raises:
        ValueError: It is none of this version.
    """
    return _decode(text, Reply, _REPLIES)


def answer(order: Order, **what: Any) -> Reply:
    """A reply to this order: its identity, and what came of it."""
    identity = {
        name: getattr(order, name)
        for name in ("run", "epoch", "round", "site", "session", "attempt", "base_version")
    }
    return Reply(**{**identity, **what})


def _decode(text: str, kind: type[Message], adapter: TypeAdapter[Message]) -> Message:
    try:
        body = json.loads(text)
        if isinstance(body, dict) and set(body) == {f.name for f in fields(kind)}:
            return adapter.validate_json(text)
    except ValueError:  # no JSON, or a field of another type or not finite
        pass
    raise ValueError(f"not a message of this version: {text[:120]!r}")
