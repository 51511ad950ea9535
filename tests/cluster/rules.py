"""The CEL rules of a CRD (`x-kubernetes-validations`), evaluated by a real implementation of CEL.

What Kubernetes adds to the language (`quantity`, `isURL`, `find` and the like) is unknown here: a
rule that uses it fails when it is evaluated. Costs are not estimated.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

from tests.cluster.objects import Json
from tests.cluster.refusals import Cause

with warnings.catch_warnings():
    # Its command line, which comes with it, imports typer, and that what click calls old.
    warnings.simplefilter("ignore", DeprecationWarning)
    import cel


@functools.lru_cache(maxsize=1024)
def _compiled(rule: str) -> cel.Program:
    return cel.compile(rule)


def check(schema: Json, value: Any, before: Any = None, path: str = "") -> Iterator[Cause]:
    """The rules that a value breaks; one that names oldSelf holds only where there is one."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield from _broken(rule, value, before, path)
    if isinstance(value, dict):
        for key, part in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                old = before.get(key) if isinstance(before, dict) else None
                yield from check(inner, part, old, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            old = _same_item(schema, part, before)
            yield from check(schema.get("items", {}), part, old, f"{path}[{index}]")


def _same_item(schema: Json, part: Any, before: Any) -> Any:
    """Items have a past only in lists whose items have keys."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if not keys or not isinstance(before, list):
        return None
    return next((old for old in before if all(old.get(k) == part.get(k) for k in keys)), None)


def _broken(rule: Json, value: Any, before: Any, path: str) -> Iterator[Cause]:
    program = _compiled(rule["rule"])
    known = {"self": value}
    if "oldSelf" in program.variables():
        if before is None and not rule.get("optionalOldSelf"):
            return
        known["oldSelf"] = (
            (cel.OptionalValue.of(before) if before is not None else cel.OptionalValue.none())
            if rule.get("optionalOldSelf")
            else before
        )
    where = f"{path}{rule.get('fieldPath', '')}".lstrip(".") or "<nil>"
    try:
        is_met = program.execute(known)
    except (ValueError, TypeError, RuntimeError) as error:
        yield Cause(where, f"Invalid value: rule evaluation error: {error}: {rule['rule']}")
        return
    if is_met is not True:
        yield Cause(
            where,
            f"Invalid value: {_message(rule, known)}",
            rule.get("reason", "FieldValueInvalid"),
        )


def _message(rule: Json, known: Json) -> str:
    if "messageExpression" in rule:
        return str(_compiled(rule["messageExpression"]).execute(known))
    return str(rule.get("message") or f"failed rule: {rule['rule']}")


def uncompilable(schema: Any, path: str = "") -> Iterator[Cause]:
    """The rules of a schema that are no CEL at all."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from uncompilable(part, f"{path}[{index}]")
    if not isinstance(schema, dict):
        return
    for rule in schema.get("x-kubernetes-validations") or []:
        for text in [rule["rule"], *filter(None, [rule.get("messageExpression")])]:
            try:
                _compiled(text)
            except ValueError as error:
                yield Cause(f"{path}.x-kubernetes-validations", f"Invalid value: {text}: {error}")
    for key, part in schema.items():
        if key not in ("x-kubernetes-validations", "default", "enum"):
            yield from uncompilable(part, f"{path}.{key}")
