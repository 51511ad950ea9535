"""What a request is about: its path, its query and its body."""

import json
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from tests.cluster import protobuf
from tests.cluster.access import Ask
from tests.cluster.api import Write
from tests.cluster.objects import Json
from tests.cluster.ownership import Manager
from tests.cluster.refusals import bad_request

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass(frozen=True, slots=True)
class Target:
    """The kind, and where they are named the object and the part of it."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def target_of(path: str) -> Target | None:
    """The target of `/api/v1/...` and `/apis/GROUP/VERSION/...`; None for all other paths."""
    parts = [part for part in path.split("/") if part]
    match parts:
        case ["api", version, *rest] if rest:
            group = ""
        case ["apis", group, version, *rest] if rest:
            pass
        case _:
            return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3:
        return None
    plural, name, subresource = [*rest, "", ""][:3]
    return Target(group, version, plural, namespace, name, subresource)


def is_watch(request: web.Request) -> bool:
    return request.query.get("watch") in ("true", "1")


def verb_of(request: web.Request, target: Target) -> str:
    """The word by which roles know this request."""
    if request.method == "GET":
        if is_watch(request):
            return "watch"
        return "get" if target.name else "list"
    if request.method == "DELETE":
        return "delete" if target.name else "deletecollection"
    method = str(request.method)
    return _VERBS.get(method, method.lower())


def ask_of(request: web.Request) -> Ask:
    target = target_of(request.path)
    if target is None:
        return Ask("get" if request.method == "GET" else request.method.lower(), path=request.path)
    return Ask(
        verb_of(request, target),
        target.group,
        target.plural,
        target.subresource,
        target.namespace,
        target.name,
    )


def write_of(request: web.Request, target: Target) -> Write:
    """Who writes: as the query says, or else the first word of the user agent."""
    agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
    manager = request.query.get("fieldManager") or agent
    is_apply = request.method == "PATCH" and "apply-patch" in request.content_type
    part = target.subresource if target.subresource in ("status", "scale") else ""
    return Write(
        Manager(manager, "Apply" if is_apply else "Update", part),
        is_dry=request.query.get("dryRun") == "All",
        is_strict=request.query.get("fieldValidation") == "Strict",
    )


async def body_of(request: web.Request) -> Any:
    if request.content_type == protobuf.CONTENT_TYPE:
        return protobuf.decoded(await request.read())
    text = await request.text()
    try:
        return yaml.safe_load(text) if "yaml" in request.content_type else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise bad_request(f"the body cannot be read: {error}") from error


async def object_of(request: web.Request) -> Json:
    body = await body_of(request)
    if not isinstance(body, dict):
        raise bad_request("the body is no object")
    if not isinstance(body.setdefault("metadata", {}), dict):
        raise bad_request("metadata is no object")
    return body
