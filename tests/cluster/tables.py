"""The tables that `kubectl get` prints."""

import re
from datetime import UTC, datetime
from typing import Any

from tests.cluster.objects import Json, dig
from tests.cluster.resources import Column, Resource

_STEP = re.compile(r"\.?([^.\[\]]+)|\[\?\(@\.(\w+)\s*==\s*[\"']([^\"']*)[\"']\)\]|\[(\d+)\]")


def value_at(thing: Any, path: str) -> Any:
    """What a JSONPath of a printer column means: fields, indices, and `[?(@.type=="Ready")]`."""
    for field, key, wanted, index in _STEP.findall(path.lstrip(".")):
        if field:
            thing = thing.get(field) if isinstance(thing, dict) else None
        elif not isinstance(thing, list):
            return None
        elif key:
            thing = next((item for item in thing if item.get(key) == wanted), None)
        else:
            thing = thing[int(index)] if int(index) < len(thing) else None
    return thing


def _age(since: Any) -> str:
    if not isinstance(since, str):
        return "<unknown>"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s}{unit}"
    return f"{max(seconds, 0)}s"


def _pod_cells(pod: Json) -> list[Any]:
    statuses = dig(pod, "status.containerStatuses") or []
    ready = sum(status.get("ready", False) for status in statuses)
    restarts = sum(status.get("restartCount", 0) for status in statuses)
    reason = (
        "Terminating"
        if "deletionTimestamp" in pod["metadata"]
        else next(
            (
                status["state"]["waiting"]["reason"]
                for status in statuses
                if "waiting" in status.get("state", {})
            ),
            dig(pod, "status.phase"),
        )
    )
    return [f"{ready}/{len(pod['spec']['containers'])}", reason, restarts]


_POD_COLUMNS = (Column("Ready", ""), Column("Status", ""), Column("Restarts", "", "integer"))


def table(resource: Resource, things: list[Json], metadata: Json, include: str) -> Json:
    """A `meta.k8s.io/v1` Table; each row carries the object, or only its metadata."""
    is_pod = resource.kind == "Pod"
    columns = list(_POD_COLUMNS) if is_pod else list(resource.columns)
    rest = [c for c in resource.columns if c.priority] if is_pod else []
    has_age = any(column.name == "Age" for column in columns)
    shown = [Column("Name", "metadata.name", "string"), *columns, *rest]
    if not has_age:
        shown.append(Column("Age", "metadata.creationTimestamp", "date"))
    rows = []
    for thing in things:
        cells = _pod_cells(thing) if is_pod else [_cell(thing, column) for column in columns]
        cells = [thing["metadata"]["name"], *cells, *(_cell(thing, column) for column in rest)]
        if not has_age:
            cells.append(_age(thing["metadata"].get("creationTimestamp")))
        rows.append({"cells": cells, "object": _included(thing, include)})
    definitions = [
        {
            "name": column.name,
            "type": column.kind,
            "priority": column.priority,
            "format": "name" if column.name == "Name" else "",
            "description": "",
        }
        for column in shown
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    }


def _cell(thing: Json, column: Column) -> Any:
    value = value_at(thing, column.path)
    return _age(value) if column.kind == "date" and value is not None else value


def _included(thing: Json, include: str) -> Json | None:
    if include == "None":
        return None
    if include == "Object":
        return thing
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": thing["metadata"],
    }
