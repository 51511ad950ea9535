"""The messages in protobuf that tests need: kubectl's Eviction, and the Secrets of helm."""

import base64
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


def _message(value: int | bytes) -> dict[int, int | bytes]:
    return dict(_fields(value)) if isinstance(value, bytes) else {}


def _map(data: bytes, number: int) -> dict[str, bytes]:
    """A map of a message: entries of key 1 and value 2."""
    found = {}
    for field, entry in _fields(data):
        if field == number:
            pair = _message(entry)
            found[_text(pair.get(1, b""))] = bytes(pair.get(2, b""))
    return found


def _text(value: int | bytes) -> str:
    return bytes(value).decode()


def _eviction(data: bytes) -> Json:
    """deleteOptions 2."""
    options = bytes(_message(data).get(2, b""))
    thing: Json = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {}}
    return thing | ({"deleteOptions": _delete_options(options)} if options else {})


def _delete_options(data: bytes) -> Json:
    """gracePeriodSeconds 1, propagationPolicy 4."""
    fields = _message(data)
    options: Json = {"gracePeriodSeconds": fields[1]} if 1 in fields else {}
    return options | ({"propagationPolicy": _text(fields[4])} if 4 in fields else {})


def _secret(data: bytes) -> Json:
    """metadata 1 (name 1, namespace 3, uid 5, resourceVersion 6, labels 11), data 2, type 3."""
    fields = _message(data)
    raw = bytes(fields.get(1, b""))
    names = {1: "name", 3: "namespace", 5: "uid", 6: "resourceVersion"}
    metadata: Json = {
        names[number]: _text(value)
        for number, value in _fields(raw)
        if number in names and value != b""
    }
    metadata["labels"] = {key: value.decode() for key, value in _map(raw, 11).items()}
    values = {key: base64.b64encode(value).decode() for key, value in _map(data, 2).items()}
    thing: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": values}
    if 3 in fields:
        thing["type"] = _text(fields[3])
    return thing


_KINDS = {b"Eviction": _eviction, b"DeleteOptions": _delete_options, b"Secret": _secret}


def decoded(data: bytes) -> Json:
    """What is in the envelope of Kubernetes; a kind that no test sends is refused.

    Numbers of fields are those of `runtime.Unknown` (typeMeta 1, raw 2), `TypeMeta` (kind 2) and
    of the kinds in Kubernetes' generated.proto files.
    """
    if not data.startswith(_MAGIC):
        raise unsupported_media(CONTENT_TYPE)
    envelope = _message(data[len(_MAGIC) :])
    kind = _message(envelope.get(1, b"")).get(2)
    if kind not in _KINDS:
        raise unsupported_media(CONTENT_TYPE)
    return _KINDS[kind](bytes(envelope.get(2, b"")))
