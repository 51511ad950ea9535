"""The patches that change an object: JSON patch, merge patch, and strategic merge."""

import copy
from typing import Any

import jsonpatch
import jsonpointer

from tests.cluster import mergekeys
from tests.cluster.objects import Json
from tests.cluster.refusals import ApiError, bad_request

_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def json_patch(thing: Json, operations: Any) -> Json:
    """RFC 6902; a `test` that fails refuses the whole patch."""
    try:
        patched = jsonpatch.apply_patch(thing, operations)
    except jsonpatch.JsonPatchTestFailed as error:
        message = "the server rejected our request due to an error in our request"
        raise ApiError(422, "Invalid", f"{message}: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        raise bad_request(f"the patch cannot be applied: {error}") from error
    if not isinstance(patched, dict):
        raise bad_request("the patch leaves no object")
    return patched


def merge(thing: Any, patch: Any) -> Any:
    """RFC 7386; null deletes."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(thing) if isinstance(thing, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic(thing: Any, patch: Any) -> Any:
    """A merge in which lists of named items are merged item by item."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != "$patch"}
    merged = dict(thing) if isinstance(thing, dict) else {}
    if "$retainKeys" in patch:
        merged = {key: value for key, value in merged.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith(_DELETE):
            field = key.removeprefix(_DELETE)
            merged[field] = [item for item in merged.get(field) or [] if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            merged.pop(key, None)
        elif isinstance(value, list):
            merged[key] = _lists(key, merged.get(key) or [], value)
        else:
            merged[key] = strategic(merged.get(key), value)
    for key in [key for key in patch if key.startswith(_ORDER)]:
        _reorder(merged, key.removeprefix(_ORDER), patch[key])
    return merged


def _lists(field: str, old: list[Any], patch: list[Any]) -> list[Any]:
    if field in mergekeys.SETS:
        return [*old, *(item for item in patch if item not in old)]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    keys = mergekeys.keys_of(field, [*old, *patch], None)
    if keys is None:
        return copy.deepcopy(patch)
    merged = {tuple(item[key] for key in keys): item for item in old}
    for item in patch:
        name = tuple(item[key] for key in keys)
        if item.get("$patch") == "delete":
            merged.pop(name, None)
        else:
            merged[name] = strategic(merged.get(name, {}), item)
    return list(merged.values())


def _reorder(merged: Json, field: str, order: list[Any]) -> None:
    """Put items into the order of the patch; those it does not name stay behind."""
    items = merged.get(field)
    if not isinstance(items, list):
        return

    def place(item: Any) -> int:
        for index, wanted in enumerate(order):
            is_same = (
                wanted == item if not isinstance(wanted, dict) else (wanted.items() <= item.items())
            )
            if is_same:
                return index
        return len(order)

    merged[field] = sorted(items, key=place)
