"""Structural schemas of CRDs: defaults, pruning, and what is not valid, by field."""

import copy
import re
from collections.abc import Iterator
from typing import Any

from tests.cluster.objects import Json
from tests.cluster.refusals import Cause

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
# What the API server itself owns at the root, and in objects that are embedded
_ROOT = {"apiVersion", "kind", "metadata"}


def fill_defaults(schema: Json, value: Any) -> None:
    """Put defaults where a key is missing, or null and not nullable; outer ones first."""
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            is_empty = value.get(key) is None and not (key in value and inner.get("nullable"))
            if "default" in inner and is_empty:
                value[key] = copy.deepcopy(inner["default"])
    for inner, part in _inside(schema, value):
        fill_defaults(inner, part)


def prune(schema: Json, value: Any, path: str = "") -> list[str]:
    """Drop what the schema does not know; the paths that were dropped."""
    dropped: list[str] = []
    if isinstance(value, dict):
        known = schema.get("properties", {})
        is_open = schema.get("additionalProperties") not in (None, False) or schema.get(
            "x-kubernetes-preserve-unknown-fields"
        )
        kept = _ROOT if path == "" or schema.get("x-kubernetes-embedded-resource") else set()
        for key in [key for key in value if key not in known and key not in kept and not is_open]:
            del value[key]
            dropped.append(f"{path}.{key}".lstrip("."))
        for key, part in value.items():
            inner = known.get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict) and not (path == "" and key == "metadata"):
                dropped += prune(inner, part, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            dropped += prune(schema.get("items", {}), part, f"{path}[{index}]")
    return dropped


def _inside(schema: Json, value: Any) -> Iterator[tuple[Json, Any]]:
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for key, part in value.items():
            inner = known.get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield inner, part
    elif isinstance(value, list):
        for part in value:
            yield schema.get("items", {}), part


def validate(schema: Json, value: Any, path: str = "") -> list[Cause]:
    """What is wrong with a value, in the words of the API server."""
    if value is None:
        return [] if schema.get("nullable") else [_wrong_type(schema, path, "null")]
    if schema.get("x-kubernetes-int-or-string"):
        is_either = isinstance(value, int | str) and not isinstance(value, bool)
        return [] if is_either else [Cause(path, "must be an integer or a string")]
    kind = schema.get("type")
    if kind and not _is_a(kind, value):
        return [_wrong_type(schema, path, _name_of(value))]
    causes = [*_enumerated(schema, value, path), *_combined(schema, value, path)]
    if isinstance(value, dict):
        causes += _object(schema, value, path)
    elif isinstance(value, list):
        causes += _array(schema, value, path)
    elif isinstance(value, str):
        causes += _string(schema, value, path)
    elif not isinstance(value, bool):
        causes += _number(schema, value, path)
    return causes


def _is_a(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _name_of(value: Any) -> str:
    return next((name for name in _TYPES if _is_a(name, value)), type(value).__name__)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _wrong_type(schema: Json, path: str, found: str) -> Cause:
    wanted = schema.get("type", "object")
    message = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return Cause(path, message, "FieldValueTypeInvalid")


def _wrong(path: str, value: Any, why: str) -> Cause:
    return Cause(path, f"Invalid value: {_shown(value)}: {path} in body {why}")


def _enumerated(schema: Json, value: Any, path: str) -> list[Cause]:
    if "enum" not in schema or value in schema["enum"]:
        return []
    listed = ", ".join(_shown(one) for one in schema["enum"])
    message = f"Unsupported value: {_shown(value)}: supported values: {listed}"
    return [Cause(path, message, "FieldValueNotSupported")]


def _combined(schema: Json, value: Any, path: str) -> Iterator[Cause]:
    for inner in schema.get("allOf", []):
        yield from validate(inner, value, path)
    fitting = [not validate(inner, value, path) for inner in schema.get("anyOf", [])]
    if fitting and not any(fitting):
        yield _wrong(path, value, "must validate at least one schema (anyOf)")
    fitting = [not validate(inner, value, path) for inner in schema.get("oneOf", [])]
    if fitting and sum(fitting) != 1:
        yield _wrong(path, value, "must validate one and only one schema (oneOf)")
    if "not" in schema and not validate(schema["not"], value, path):
        yield _wrong(path, value, "must not validate the schema (not)")


def _object(schema: Json, value: Json, path: str) -> list[Cause]:
    causes = [
        Cause(f"{path}.{key}".lstrip("."), "Required value", "FieldValueRequired")
        for key in schema.get("required", [])
        if key not in value
    ]
    if len(value) > schema.get("maxProperties", len(value)):
        causes.append(_wrong(path, value, f"should have at most {schema['maxProperties']} keys"))
    if len(value) < schema.get("minProperties", 0):
        causes.append(_wrong(path, value, f"should have at least {schema['minProperties']} keys"))
    known = schema.get("properties", {})
    for key, part in value.items():
        inner = known.get(key, schema.get("additionalProperties"))
        if isinstance(inner, dict) and not (path == "" and key == "metadata"):
            causes += validate(inner, part, f"{path}.{key}".lstrip("."))
    return causes


def _array(schema: Json, value: list[Any], path: str) -> list[Cause]:
    causes = []
    if len(value) > schema.get("maxItems", len(value)):
        message = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
        causes.append(Cause(path, message, "FieldValueTooMany"))
    if len(value) < schema.get("minItems", 0):
        causes.append(_wrong(path, len(value), f"should have at least {schema['minItems']} items"))
    seen: list[Any] = []
    for index, part in enumerate(value):
        where = f"{path}[{index}]"
        causes += validate(schema.get("items", {}), part, where)
        mark = _identity(schema, part)
        if mark is not None and mark in seen:
            causes.append(Cause(where, f"Duplicate value: {mark}", "FieldValueDuplicate"))
        seen.append(mark)
    return causes


def _identity(schema: Json, part: Any) -> Any:
    kind = schema.get("x-kubernetes-list-type")
    if kind == "map" and isinstance(part, dict):
        return {key: part.get(key) for key in schema["x-kubernetes-list-map-keys"]}
    return part if kind == "set" else None


def _string(schema: Json, value: str, path: str) -> list[Cause]:
    causes = []
    if len(value) > schema.get("maxLength", len(value)):
        message = f"Too long: may not be more than {schema['maxLength']} bytes"
        causes.append(Cause(path, message, "FieldValueTooLong"))
    if len(value) < schema.get("minLength", 0):
        causes.append(_wrong(path, value, f"should be at least {schema['minLength']} chars long"))
    if "pattern" in schema and not re.search(schema["pattern"], value):
        causes.append(_wrong(path, value, f"should match '{schema['pattern']}'"))
    return causes


def _number(schema: Json, value: float, path: str) -> list[Cause]:
    causes = []
    if "minimum" in schema:
        low, is_open = schema["minimum"], schema.get("exclusiveMinimum", False)
        if value < low or (is_open and value == low):
            sign = "greater than" if is_open else "greater than or equal to"
            causes.append(_wrong(path, value, f"should be {sign} {low}"))
    if "maximum" in schema:
        high, is_open = schema["maximum"], schema.get("exclusiveMaximum", False)
        if value > high or (is_open and value == high):
            sign = "less than" if is_open else "less than or equal to"
            causes.append(_wrong(path, value, f"should be {sign} {high}"))
    if "multipleOf" in schema and value % schema["multipleOf"]:
        causes.append(_wrong(path, value, f"should be a multiple of {schema['multipleOf']}"))
    return causes
