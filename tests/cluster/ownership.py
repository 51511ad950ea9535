"""Who owns which field: `metadata.managedFields`, and the server-side apply that it decides."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.cluster import mergekeys
from tests.cluster.objects import Json, timestamp
from tests.cluster.refusals import ApiError

Path = tuple[str, ...]
# What no manager owns
_SERVERS = {"apiVersion", "kind"}
_SERVERS_METADATA = {
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "generateName",
    "selfLink",
}


@dataclass(frozen=True, slots=True)
class Manager:
    """A writer: by name, by the way it writes, and by the part of the object that it may write."""

    name: str
    operation: str
    subresource: str = ""


def leaves(thing: Json, schema: Json | None) -> dict[Path, Any]:
    """The fields of an object that have an owner, each with its value."""
    found: dict[Path, Any] = {}
    for key, value in thing.items():
        if key == "metadata":
            value = {k: v for k, v in value.items() if k not in _SERVERS_METADATA}
        if key not in _SERVERS:
            inner = None if key == "metadata" else mergekeys.inner_schema(schema, key)
            found.update(_leaves(key, value, inner, (f"f:{key}",)))
    return found


def _leaves(field: str, value: Any, schema: Json | None, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            inner = mergekeys.inner_schema(schema, key)
            yield from _leaves(key, part, inner, (*path, f"f:{key}"))
        return
    if isinstance(value, list) and field in mergekeys.SETS:
        yield from (((*path, f"v:{json.dumps(item)}"), item) for item in value)
        return
    keys = mergekeys.keys_of(field, value, schema) if isinstance(value, list) and value else None
    if keys is None:
        yield path, value
        return
    items = schema.get("items", {}) if schema is not None else None
    for item in value:
        name = "k:" + json.dumps({key: item.get(key) for key in keys}, separators=(",", ":"))
        # An item is owned as such, besides its fields
        yield (*path, name, "."), None
        yield from _leaves("", item, items, (*path, name))


def _encoded(paths: set[Path]) -> Json:
    tree: Json = {}
    for path in sorted(paths):
        node = tree
        for part in path:
            node = node.setdefault(part, {})
    return tree


def _decoded(tree: Json, path: Path = ()) -> Iterator[Path]:
    for key, inner in tree.items():
        if inner:
            yield from _decoded(inner, (*path, key))
        else:
            yield (*path, key)


def managers_of(thing: Json) -> dict[Manager, set[Path]]:
    return {
        Manager(entry["manager"], entry["operation"], entry.get("subresource", "")): set(
            _decoded(entry["fieldsV1"])
        )
        for entry in thing["metadata"].get("managedFields") or []
    }


def with_managers(thing: Json, managers: dict[Manager, set[Path]], before: Json | None) -> Json:
    """The object with its owners written down; an entry that did not change keeps its time."""
    old = {
        _identity(entry): entry
        for entry in ((before or {}).get("metadata") or {}).get("managedFields") or []
    }
    entries = []
    for manager, paths in managers.items():
        if not paths:
            continue
        entry = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": thing["apiVersion"],
            "time": timestamp(),
            "fieldsType": "FieldsV1",
            "fieldsV1": _encoded(paths),
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        same = old.get(_identity(entry))
        entries.append(same if same and same["fieldsV1"] == entry["fieldsV1"] else entry)
    return {**thing, "metadata": {**thing["metadata"], "managedFields": entries}}


def _identity(entry: Json) -> tuple[str, str, str]:
    return entry["manager"], entry["operation"], entry.get("subresource", "")


def written(thing: Json, before: Json | None, manager: Manager, schema: Json | None) -> Json:
    """The owners after a plain write: who changes a field, or adds it, owns it."""
    new = leaves(thing, schema)
    old = leaves(before, schema) if before else {}
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    managers = managers_of(before) if before else {}
    for other, paths in managers.items():
        managers[other] = (paths & new.keys()) - (changed if other != manager else set())
    managers[manager] = managers.get(manager, set()) | changed
    return with_managers(thing, managers, before)


def applied(
    live: Json, wanted: Json, manager: Manager, schema: Json | None, is_forced: bool
) -> Json:
    """Server-side apply: merge, give up what is no longer named, and refuse what another owns.

    Raises:
        ApiError: 409 with a cause for each field of another manager that has another value.
    """
    mine, have = leaves(wanted, schema), leaves(live, schema)
    managers = managers_of(live)
    differing = {path for path, value in mine.items() if path in have and have[path] != value}
    taken = {
        other: paths & differing
        for other, paths in managers.items()
        if other != manager and paths & differing
    }
    if taken and not is_forced:
        raise _conflicts(taken)
    for other, paths in taken.items():
        managers[other] -= paths
    dropped = managers.get(manager, set()) - mine.keys()
    for other, paths in managers.items():
        if other != manager:
            dropped -= paths
    managers[manager] = set(mine)
    merged = _merged("", live, wanted, schema)
    # Whole items first: without their keys they could not be found.
    for path in sorted(dropped, key=lambda path: (path[-1] != ".", -len(path))):
        _remove(merged, path)
    return with_managers(merged, managers, live)


def _conflicts(taken: dict[Manager, set[Path]]) -> ApiError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{other.name}"'
            + (f" using {other.operation}" if other.operation != "Apply" else ""),
            "field": "".join(
                f".{part[2:]}" if part[0] == "f" else f"[{part[2:]}]" for part in path
            ),
        }
        for other, paths in taken.items()
        for path in sorted(paths)
    ]
    told = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    message = f"Apply failed with {len(causes)} conflict(s): {told}"
    return ApiError(409, "Conflict", message, {"causes": causes})


def _merged(field: str, live: Any, wanted: Any, schema: Json | None) -> Any:
    if isinstance(wanted, dict):
        merged = dict(live) if isinstance(live, dict) else {}
        for key, value in wanted.items():
            inner = None if key == "metadata" else mergekeys.inner_schema(schema, key)
            merged[key] = _merged(key, merged.get(key), value, inner)
        return merged
    if isinstance(wanted, list) and isinstance(live, list):
        if field in mergekeys.SETS:
            return [*live, *(item for item in wanted if item not in live)]
        keys = mergekeys.keys_of(field, [*live, *wanted], schema)
        if keys:
            items = schema.get("items", {}) if schema is not None else None
            names = {tuple(item.get(k) for k in keys): item for item in live}
            for item in wanted:
                name = tuple(item.get(k) for k in keys)
                names[name] = _merged("", names.get(name), item, items)
            return list(names.values())
    return copy.deepcopy(wanted)


def _remove(thing: Any, path: Path) -> None:
    """Take a field away; a list's item goes with the mark that owns it as such."""
    *way, last = path
    if last == ".":
        *way, last = way
    for part in way:
        thing = _step(thing, part)
        if thing is None:
            return
    if last[0] == "f" and isinstance(thing, dict):
        thing.pop(last[2:], None)
    elif isinstance(thing, list):
        item = _step(thing, last)
        if item is not None:
            thing.remove(item)


def _step(thing: Any, part: str) -> Any:
    if part[0] == "f":
        return thing.get(part[2:]) if isinstance(thing, dict) else None
    wanted = json.loads(part[2:])
    for item in thing if isinstance(thing, list) else []:
        if item == wanted or (isinstance(wanted, dict) and wanted.items() <= item.items()):
            return item
    return None
