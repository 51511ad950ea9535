"""The verbs of the API over HTTP: get, list, watch, create, update, patch and delete."""

import base64
import binascii
import copy
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.cluster import ownership, patches, subresources, tables, watching
from tests.cluster.access import Ask, Authorizer, User
from tests.cluster.api import Api, Deletion, Write, seen_as
from tests.cluster.objects import Json, dig
from tests.cluster.refusals import (
    ApiError,
    bad_request,
    expired,
    forbidden,
    no_such_path,
    unsupported_media,
)
from tests.cluster.resources import Resource
from tests.cluster.selectors import Matches, by_fields, by_labels
from tests.cluster.targets import Target, body_of, is_watch, object_of, write_of

Logs = Callable[[web.Request, Json], Awaitable[web.StreamResponse]]
_BINDING = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


async def no_logs(request: web.Request, pod: Json) -> web.StreamResponse:
    raise ApiError(404, "NotFound", f"no node runs pod {pod['metadata']['name']}")


@dataclass
class Endpoints:
    """Answers requests about objects; `logs` is whoever runs the pods."""

    api: Api
    authorizer: Authorizer
    is_up: Callable[[], bool]
    logs: Logs = field(default=no_logs)

    async def answer(self, request: web.Request, target: Target, user: User) -> web.StreamResponse:
        resource = self.api.resources.find(target.group, target.version, target.plural)
        if resource is None:
            raise no_such_path()
        if target.subresource:
            if target.subresource not in resource.subresources:
                raise no_such_path()
            return await self._part(request, resource, target)
        if not target.name:
            return await self._collection(request, resource, target, user)
        return await self._one(request, resource, target, user)

    async def _one(
        self, request: web.Request, resource: Resource, target: Target, user: User
    ) -> web.StreamResponse:
        write = write_of(request, target)
        match request.method:
            case "GET":
                thing = self.api.get(resource, target.namespace, target.name)
                return reply(self._shaped(request, resource, thing))
            case "PUT":
                thing = await object_of(request)
                _name(thing, target)
                self._check_escalation(resource, thing, user, target)
                return reply(self.api.update(resource, thing, write))
            case "PATCH":
                return await self._patch(request, resource, target, user)
            case "DELETE":
                how = await _deletion(request)
                gone = self.api.delete(resource, target.namespace, target.name, how)
                return reply(gone)
            case _:
                raise ApiError(405, "MethodNotAllowed", f"{request.method} is not allowed here")

    async def _collection(
        self, request: web.Request, resource: Resource, target: Target, user: User
    ) -> web.StreamResponse:
        by_label = by_labels(request.query.get("labelSelector", ""))
        by_field = by_fields(request.query.get("fieldSelector", ""), resource)

        def matches(thing: Json) -> bool:
            return by_label(thing) and by_field(thing)

        if request.method == "POST":
            thing = await object_of(request)
            self._check_escalation(resource, thing, user, target)
            made = self.api.create(resource, target.namespace, thing, write_of(request, target))
            return reply(made, 201)
        if request.method == "DELETE":
            how = await _deletion(request)
            for key, thing in list(self._select(resource, target)):
                if matches(thing):
                    self.api.delete(resource, key.namespace, key.name, how)
            return reply(_done())
        if request.method != "GET":
            raise ApiError(405, "MethodNotAllowed", f"{request.method} is not allowed here")
        if is_watch(request):
            watched = watching.Watched(
                resource,
                target.namespace,
                matches,
                lambda thing: self._shaped(request, resource, thing),
            )
            return await watching.stream(request, watched, self.api.store, self.is_up)
        return reply(self._list(request, resource, target, matches))

    def _select(self, resource: Resource, target: Target) -> Any:
        return self.api.store.select(resource.group, resource.plural, target.namespace)

    def _list(
        self, request: web.Request, resource: Resource, target: Target, matches: Matches
    ) -> Json:
        """A list, or a page of one: all pages of a list show the same moment."""
        limit = int(request.query.get("limit") or 0)
        store = self.api.store
        revision, start = store.revision, 0
        objects = store.objects
        if token := request.query.get("continue"):
            revision, start = _position(token)
            if revision not in store.snapshots:
                raise expired(revision, store.compacted)
            objects = store.snapshots[revision]
        found = [
            objects[key]
            for key in sorted(
                k for k in objects if (k.group, k.plural) == (resource.group, resource.plural)
            )
            if target.namespace in ("", key.namespace) and matches(objects[key])
        ]
        metadata: Json = {"resourceVersion": str(revision)}
        page = found[start : start + limit] if limit else found[start:]
        left = len(found) - start - len(page)
        if left:
            at = store.snapshot() if not start else revision
            metadata["continue"] = _token(at, start + limit)
            metadata["remainingItemCount"] = left
        things = [seen_as(resource, thing) for thing in page]
        if "as=Table" in request.headers.get("Accept", ""):
            include = request.query.get("includeObject", "Metadata")
            return tables.table(resource, things, metadata, include)
        if "as=PartialObjectMetadataList" in request.headers.get("Accept", ""):
            return {
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": [self._shaped(request, resource, thing) for thing in things],
            }
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": things,
        }

    def _shaped(self, request: web.Request, resource: Resource, thing: Json) -> Json:
        """An object as the client wants to have it: whole, as a row, or its metadata alone."""
        accept = request.headers.get("Accept", "")
        thing = seen_as(resource, thing)
        if "as=Table" in accept:
            metadata = {"resourceVersion": thing["metadata"]["resourceVersion"]}
            include = request.query.get("includeObject", "Metadata")
            return tables.table(resource, [thing], metadata, include)
        if "as=PartialObjectMetadata" in accept:
            return {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": thing["metadata"],
            }
        return thing

    async def _patch(
        self, request: web.Request, resource: Resource, target: Target, user: User
    ) -> web.StreamResponse:
        write = write_of(request, target)
        body = await body_of(request)
        key = self.api.key(resource, target.namespace, target.name)
        if write.manager.operation == "Apply" and self.api.store.get(key) is None:
            if not self.authorizer.allows(
                user, Ask("create", target.group, target.plural, namespace=target.namespace)
            ):
                raise forbidden(f'User "{user.name}" cannot create {resource.qualified}', resource)
            thing = self._new(resource, body, target, write)
            self._check_escalation(resource, thing, user, target)
            made = self.api.create(resource, target.namespace, thing, write)
            return reply(made, 201)
        live = self.api.get(resource, target.namespace, target.name)
        thing = self._patched(request, resource, live, body, write)
        self._check_escalation(resource, thing, user, target)
        return reply(self.api.update(resource, thing, write))

    def _new(self, resource: Resource, body: Json, target: Target, write: Write) -> Json:
        _name(body, target)
        empty = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": {}}
        return ownership.applied(empty, body, write.manager, resource.schema, is_forced=False)

    def _patched(
        self, request: web.Request, resource: Resource, live: Json, body: Any, write: Write
    ) -> Json:
        """The object as a patch wants it; only a patch that names a version insists on it."""
        base, kind = copy.deepcopy(live), request.content_type
        if kind == "application/json-patch+json":
            return patches.json_patch(base, body)
        if not isinstance(body, dict):
            raise bad_request("the patch is no object")
        wanted = dig(body, "metadata.resourceVersion")
        match kind:
            case "application/merge-patch+json":
                thing = patches.merge(base, body)
            case "application/strategic-merge-patch+json" if not resource.is_custom:
                thing = patches.strategic(base, body)
            case "application/apply-patch+yaml" | "application/apply-patch+json":
                is_forced = request.query.get("force") in ("true", "1")
                thing = ownership.applied(base, body, write.manager, resource.schema, is_forced)
            case _:
                raise unsupported_media(kind)
        thing["metadata"]["resourceVersion"] = wanted or live["metadata"]["resourceVersion"]
        return dict(thing)

    async def _part(
        self, request: web.Request, resource: Resource, target: Target
    ) -> web.StreamResponse:
        live = self.api.get(resource, target.namespace, target.name)
        write = write_of(request, target)
        if target.subresource == "log":
            return await self.logs(request, live)
        if target.subresource == "eviction":
            done = subresources.evict(self.api, resource, live, await object_of(request))
            return reply(done, 201)
        if target.subresource == "scale":
            seen = subresources.scale_of(resource, live)
            if request.method == "GET":
                return reply(seen)
            if request.method == "PATCH":
                wanted = self._patched(request, resource, seen, await body_of(request), write)
            else:
                wanted = await object_of(request)
            return reply(subresources.rescale(self.api, resource, live, wanted, write))
        if request.method == "GET":
            return reply(live)
        if request.method == "PATCH":
            thing = self._patched(request, resource, live, await body_of(request), write)
        else:
            thing = await object_of(request)
            _name(thing, target)
        return reply(self.api.update(resource, thing, write))

    def _check_escalation(
        self, resource: Resource, thing: Json, user: User, target: Target
    ) -> None:
        """Nobody gives a permission away that he does not have himself."""
        if resource.kind not in _BINDING or user.is_admin:
            return
        checked = {**thing, "kind": resource.kind}
        if missing := self.authorizer.escalates(user, checked, target.namespace):
            name = thing["metadata"].get("name", "")
            raise forbidden(
                f'{resource.qualified} "{name}" is forbidden: user "{user.name}" is attempting to '
                f"grant RBAC permissions not currently held: {missing}",
                resource,
                name,
            )


def _name(thing: Json, target: Target) -> None:
    """Fill in what the path says, and refuse what contradicts it."""
    metadata = thing["metadata"]
    for key, wanted in (("name", target.name), ("namespace", target.namespace)):
        if wanted and metadata.setdefault(key, wanted) != wanted:
            raise bad_request(
                f"the {key} of the object ({metadata[key]}) does not match the "
                f"{key} on the URL ({wanted})"
            )


async def _deletion(request: web.Request) -> Deletion:
    options: Json = {}
    if request.can_read_body and (await request.text()).strip():
        options = await object_of(request)
    conditions = options.get("preconditions") or {}
    policy = options.get("propagationPolicy") or request.query.get("propagationPolicy")
    if options.get("orphanDependents"):
        policy = "Orphan"
    grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    return Deletion(
        policy or "Background",
        None if grace is None else int(grace),
        conditions.get("uid"),
        conditions.get("resourceVersion"),
    )


def reply(thing: Json, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Answer in JSON; without a charset, which some clients take for another type."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return web.Response(body=json.dumps(thing).encode(), status=code, headers=headers)


def _token(revision: int, start: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([revision, start]).encode()).decode()


def _position(token: str) -> tuple[int, int]:
    try:
        revision, start = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError) as error:
        raise bad_request("continue key is not valid") from error
    return revision, start


def _done() -> Json:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
