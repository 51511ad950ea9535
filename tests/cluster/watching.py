"""Watches: the changes of a kind as a stream of lines, with bookmarks, an end, and `410 Gone`."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass

from aiohttp import web

from tests.cluster.objects import Json
from tests.cluster.refusals import ApiError, bad_request
from tests.cluster.resources import Resource
from tests.cluster.selectors import Matches
from tests.cluster.store import Change, Store

Shape = Callable[[Json], Json]
# A real one marks about once a minute; here tests would never see it
_BOOKMARK_S = 2.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watch sees, and how it looks there."""

    resource: Resource
    namespace: str
    matches: Matches
    shape: Shape

    def covers(self, change: Change) -> bool:
        key = change.key
        is_kind = (key.group, key.plural) == (self.resource.group, self.resource.plural)
        return is_kind and self.namespace in ("", key.namespace)

    def event(self, change: Change) -> Json | None:
        """A change as this watch sees it: what no longer matches is deleted, what now does new."""
        if not self.covers(change):
            return None
        was = change.before is not None and self.matches(change.before)
        now = change.kind != "DELETED" and self.matches(change.thing)
        if now:
            return self._line("MODIFIED" if was else "ADDED", change.thing)
        return self._line("DELETED", change.thing) if was else None

    def _line(self, kind: str, thing: Json) -> Json:
        return {"type": kind, "object": self.shape(thing)}

    def present(self, store: Store) -> list[Json]:
        found = store.select(self.resource.group, self.resource.plural, self.namespace)
        return [self._line("ADDED", thing) for _, thing in found if self.matches(thing)]

    def bookmark(self, revision: int, is_initial: bool = False) -> Json:
        metadata: Json = {"resourceVersion": str(revision), "creationTimestamp": None}
        if is_initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        thing = {
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version,
            "metadata": metadata,
        }
        return {"type": "BOOKMARK", "object": thing}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the query of a watch asks for: from when, for how long, and whether with bookmarks."""

    since: int
    timeout_s: float
    has_bookmarks: bool
    has_initial: bool


def wish_of(query: Mapping[str, str]) -> Wish:
    text = query.get("resourceVersion") or "0"
    if not text.isdigit():
        raise bad_request(f"invalid resource version: {text}")
    return Wish(
        int(text),
        float(query.get("timeoutSeconds") or 1800),
        query.get("allowWatchBookmarks") in ("true", "1"),
        query.get("sendInitialEvents") == "true",
    )


def _initial(watched: Watched, store: Store, wish: Wish) -> Iterator[Json]:
    """What is there already, for a watch that does not say which version it knows."""
    yield from watched.present(store)
    if wish.has_initial and wish.has_bookmarks:
        yield watched.bookmark(store.revision, is_initial=True)


async def events(
    watched: Watched, store: Store, wish: Wish, is_open: Callable[[], bool]
) -> AsyncIterator[Json]:
    """The events of a watch, until its time is over or its client or server has gone."""
    clock = asyncio.get_running_loop().time
    end_s, next_mark_s = clock() + wish.timeout_s, clock() + _BOOKMARK_S
    at = wish.since
    if at == 0 or wish.has_initial:
        at = store.revision
        for event in list(_initial(watched, store, wish)):
            yield event
    while clock() < end_s and is_open():
        try:
            changes = store.since(at)
        except ApiError as error:
            yield {"type": "ERROR", "object": error.status()}
            return
        for change in changes:
            at = change.revision
            seen = watched.event(change)
            if seen is not None:
                yield seen
        if wish.has_bookmarks and clock() >= next_mark_s:
            next_mark_s = clock() + _BOOKMARK_S
            yield watched.bookmark(at)
        await store.changed(at, min(_LOOK_S, max(0.01, end_s - clock())))
    if wish.has_bookmarks and is_open():
        yield watched.bookmark(at)


async def stream(
    request: web.Request, watched: Watched, store: Store, is_up: Callable[[], bool]
) -> web.StreamResponse:
    """Answer a request with the events of a watch, one a line."""
    wish = wish_of(request.query)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)

    def is_open() -> bool:
        return is_up() and request.transport is not None and not request.transport.is_closing()

    try:
        async for event in events(watched, store, wish, is_open):
            await response.write(json.dumps(event).encode() + b"\n")
        await response.write_eof()
    except ConnectionError:
        # the client has seen enough
        pass
    return response
