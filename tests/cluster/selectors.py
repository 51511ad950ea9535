"""Label and field selectors, as they stand in the query of a request or in an object."""

import re
from collections.abc import Callable

from tests.cluster.objects import Json, dig, labels_of
from tests.cluster.refusals import bad_request
from tests.cluster.resources import Resource

Matches = Callable[[Json], bool]
_Labels = Callable[[dict[str, str]], bool]

_SET_BASED = re.compile(r"\s*([^\s!=]+)\s+(in|notin)\s+\(([^)]*)\)\s*")
# What can be selected by besides name and namespace
_FIELDS = {
    "pods": {"spec.nodeName", "status.phase", "status.podIP", "spec.serviceAccountName"},
    "nodes": {"spec.unschedulable"},
    "events": {
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "reason",
        "type",
    },
    "secrets": {"type"},
    "namespaces": {"status.phase"},
}


def _requirement(text: str) -> _Labels:
    if found := _SET_BASED.fullmatch(text):
        key, operator, listed = found.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    text = text.strip()
    if "!=" in text:
        key, value = text.split("!=", 1)
        return lambda labels: labels.get(key) != value
    if "=" in text:
        key, value = re.split("==?", text, maxsplit=1)
        return lambda labels: labels.get(key) == value
    if text.startswith("!"):
        return lambda labels: text[1:] not in labels
    return lambda labels: text in labels


def by_labels(selector: str) -> Matches:
    """The selector of a query: `a=b,c!=d,e in (f,g),!h`."""
    parts = [part for part in re.split(r",(?![^()]*\))", selector) if part]
    requirements = [_requirement(part) for part in parts]
    return lambda thing: all(fits(labels_of(thing)) for fits in requirements)


def by_label_selector(selector: Json) -> Matches:
    """The selector of an object: matchLabels and matchExpressions; an empty one takes all."""
    wanted = selector.get("matchLabels") or {}
    parts = []
    for expression in selector.get("matchExpressions") or []:
        key, values = expression["key"], ",".join(expression.get("values") or [])
        match expression["operator"]:
            case "In":
                parts.append(f"{key} in ({values})")
            case "NotIn":
                parts.append(f"{key} notin ({values})")
            case "Exists":
                parts.append(key)
            case _:
                parts.append(f"!{key}")
    fits = by_labels(",".join(parts))
    return lambda thing: wanted.items() <= labels_of(thing).items() and fits(thing)


def by_fields(selector: str, resource: Resource) -> Matches:
    """A field selector; fields that the API server has no index for are refused."""
    known = {"metadata.name", "metadata.namespace"} | _FIELDS.get(resource.plural, set())
    wanted: list[tuple[str, str, bool]] = []
    for part in [part for part in selector.split(",") if part]:
        path, operator, value = re.split("(!=|==?)", part, maxsplit=1)
        if path not in known:
            raise bad_request(f"field label not supported: {path}")
        wanted.append((path, value, operator != "!="))

    def fits(thing: Json) -> bool:
        return all(
            _text(dig(thing, path)) == value if same else _text(dig(thing, path)) != value
            for path, value, same in wanted
        )

    return fits


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
