"""Keeps the mirror true for one kind: a list, then what happens from there, for ever.

A watch that breaks goes on from the last version that it saw. Where that is too old (410), and now
and then in any case, the whole list is taken again: only a list tells what has gone meanwhile.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from uncurtail.adapters import clock
from uncurtail.adapters.kubernetes_api import Kind, KubeError
from uncurtail.operating.kinds import SELECTOR, Key
from uncurtail.operating.mirror import Mirror
from uncurtail.operator.fields import Manifest

log = logging.getLogger("uncurtail.operator")

RELIST_S = 600.0
BREATH_S = 0.1  # between watches, should a server end each of them at once
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Source(Protocol):
    """Lists and watches of one API server."""

    async def list(self, path: str, selector: str) -> tuple[list[Manifest], str]:
        """What there is, and at which version."""
        ...

    def watch(self, path: str, selector: str, since: str) -> AsyncIterator[Manifest]:
        """What happens from there on."""
        ...


class Reflector:
    """One kind; `run` ends only by being cancelled."""

    def __init__(
        self,
        source: Source,
        kind: Kind,
        namespace: str | None,
        mirror: Mirror,
        changed: Callable[[Key], None],
        *,
        relist_s: float = RELIST_S,
    ) -> None:
        self._source = source
        self._kind = kind
        self._namespace = namespace
        self._path = kind.path(namespace)
        self._mirror = mirror
        self._changed = changed
        self._relist_s = relist_s
        self._failures = 0
        self._version = ""
        self._relist_at = 0.0
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """List and watch, and after a failure again, ever later."""
        while True:
            try:
                if not self._version or clock.monotonic() >= self._relist_at:
                    await self._list()
                await self._watch()
                await asyncio.sleep(BREATH_S)
            except KubeError as error:
                await self._failed(error)

    async def _list(self) -> None:
        since = self._mirror.mark()
        things, version = await self._source.list(self._path, SELECTOR)
        for key in self._mirror.replace(self._kind.name, things, since, self._namespace):
            self._changed(key)
        self._version = version
        self._relist_at = clock.monotonic() + self._relist_s
        self._failures = 0
        self.synced.set()

    async def _watch(self) -> None:
        async for event in self._source.watch(self._path, SELECTOR, self._version):
            self._failures = 0
            thing = event["object"]
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    key = self._mirror.take(self._kind.name, thing)
                case "DELETED":
                    key = self._mirror.drop(self._kind.name, thing)
                case _:
                    key = None
            self._version = str(thing["metadata"]["resourceVersion"])
            if key is not None:
                self._changed(key)

    async def _failed(self, error: KubeError) -> None:
        if error.code == 410:
            self._version = ""
        self._failures += 1
        grown_s = FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10)
        pause_s = max(min(LONGEST_PAUSE_S, grown_s), error.retry_after_s or 0.0)
        log.warning("watching %s: %s; again in %.1f s", self._kind.plural, error, pause_s)
        await asyncio.sleep(pause_s)
