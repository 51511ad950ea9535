"""The one message in protobuf that tests need: the Eviction that `kubectl drain` sends."""

from collections.abc import Iterator

from tests.cluster.objects import Json
from tests.cluster.refusals import unsupported_media

_MAGIC = b"k8s\x00"
_VARINT, _BYTES = 0, 2
CONTENT_TYPE = "application/vnd.kubernetes.protobuf"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message by number; these messages have numbers and byte strings alone."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif tag & 7 == _BYTES:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise unsupported_media(CONTENT_TYPE)


def _message(fields: dict[int, int | bytes], number: int) -> dict[int, int | bytes]:
    value = fields.get(number, b"")
    return dict(_fields(value)) if isinstance(value, bytes) else {}


def eviction(data: bytes) -> Json:
    """Decode an Eviction in the envelope of Kubernetes; every other kind is refused.

    The numbers are those of `runtime.Unknown` (typeMeta 1, raw 2), `TypeMeta` (kind 2),
    `Eviction` (deleteOptions 2) and `DeleteOptions` (gracePeriodSeconds 1).
    """
    if not data.startswith(_MAGIC):
        raise unsupported_media(CONTENT_TYPE)
    envelope = dict(_fields(data[len(_MAGIC) :]))
    if _message(envelope, 1).get(2) != b"Eviction":
        raise unsupported_media(CONTENT_TYPE)
    options = _message(_message(envelope, 2), 2)
    thing: Json = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {}}
    if 1 in options:
        thing["deleteOptions"] = {"gracePeriodSeconds": options[1]}
    return thing
