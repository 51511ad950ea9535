"""The one truth of the cluster: objects by key, and the log of changes that watches read."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.cluster.objects import Json, Key
from tests.cluster.refusals import expired

# For what is not in the store
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to an object; `before` is None where it is new."""

    revision: int
    kind: str
    key: Key
    thing: Json
    before: Json | None


@dataclass
class Store:
    """Objects are never changed in place: a write replaces one whole."""

    objects: dict[Key, Json] = field(default_factory=dict)
    revision: int = 1
    changes: list[Change] = field(default_factory=list)
    compacted: int = 0
    snapshots: dict[int, dict[Key, Json]] = field(default_factory=dict)
    _waiting: set[asyncio.Event] = field(default_factory=set)

    def get(self, key: Key) -> Json | None:
        return self.objects.get(key)

    def select(self, group: str, plural: str, namespace: str = "") -> Iterator[tuple[Key, Json]]:
        """All objects of a kind, or those in a namespace, in the order of their keys."""
        for key in sorted(k for k in self.objects if (k.group, k.plural) == (group, plural)):
            if not namespace or key.namespace == namespace:
                yield key, self.objects[key]

    def put(self, key: Key, thing: Json) -> Json:
        """Store an object under the next revision."""
        before = self.objects.get(key)
        thing = self._stamped(thing)
        self.objects[key] = thing
        self._record("MODIFIED" if before else "ADDED", key, thing, before)
        return thing

    def remove(self, key: Key) -> Json:
        """Take an object away; the last thing that watches see of it has a revision of its own."""
        before = self.objects.pop(key)
        thing = self._stamped(before)
        self._record("DELETED", key, thing, before)
        return thing

    def _stamped(self, thing: Json) -> Json:
        self.revision += 1
        metadata = {**thing["metadata"], "resourceVersion": str(self.revision)}
        return {**thing, "metadata": metadata}

    def _record(self, kind: str, key: Key, thing: Json, before: Json | None) -> None:
        self.changes.append(Change(self.revision, kind, key, thing, before))
        self.wake()

    def wake(self) -> None:
        """Let everybody look again who waits for a change."""
        for event in self._waiting:
            event.set()

    def since(self, revision: int) -> list[Change]:
        """What happened after a revision; too old a one is refused."""
        if revision < self.compacted:
            raise expired(revision, self.compacted)
        # Revisions rise by one with each change: a position is a subtraction.
        start = len(self.changes) - (self.revision - revision)
        return self.changes[max(start, 0) :]

    def compact(self) -> None:
        """Forget the past: who has not read it yet must list again."""
        self.compacted = self.revision
        self.changes.clear()
        self.snapshots.clear()

    def lose(self) -> None:
        """Lose all objects; revisions go on, so that every one from before is too old."""
        self.objects.clear()
        self.revision += 1
        self.compact()

    def snapshot(self) -> int:
        """Keep today's objects for the further pages of a list."""
        self.snapshots[self.revision] = dict(self.objects)
        return self.revision

    async def changed(self, revision: int, timeout_s: float) -> bool:
        """Wait for a change after this revision."""
        return await self.until(lambda: self.revision > revision, timeout_s)

    async def until(self, is_true: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds; it is looked at after each change, and now and then."""
        event = asyncio.Event()
        self._waiting.add(event)
        clock = asyncio.get_running_loop().time
        end_s = clock() + timeout_s
        try:
            while not is_true():
                left_s = end_s - clock()
                if left_s <= 0:
                    return False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_LOOK_S, left_s)):
                        await event.wait()
                event.clear()
        finally:
            self._waiting.discard(event)
        return True
