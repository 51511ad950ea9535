"""What exists, as lists, watches and the server's own answers last told: reading it costs no call.

An answer to a write is taken in at once, so a plan never repeats what was just done. Of two words
about one object the newer one holds, whichever comes last.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from uncurtail.operating.kinds import FEDERATION, POD, Key, federation_of
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import Observed

Place = tuple[str, str, str]  # kind, namespace, name


@dataclass(frozen=True, slots=True)
class _Entry:
    thing: Manifest
    key: Key | None
    order: int  # of when we heard of it


class Mirror:
    """Written by reflectors, the framework and workers at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Place, _Entry] = {}
        self._by_key: dict[Key, set[Place]] = {}
        self._order = 0

    def mark(self) -> int:
        """Remember this moment: a list that is asked for now knows all that came before."""
        with self._lock:
            return self._order

    def replace(
        self, kind: str, things: Iterable[Manifest], since: int, namespace: str | None = None
    ) -> set[Key]:
        """Take a whole list: what it lacks is gone, unless we heard of it after `since`.

        Args:
            kind: Of the objects.
            things: Those that the server listed.
            since: The `mark` from before the list was asked for.
            namespace: The one that was listed, of which alone it can tell; None for all of them.

        Returns:
            The Federations for which something changed.
        """
        with self._lock:
            listed = {_place(kind, thing): thing for thing in things}
            changed: set[Key | None] = set()
            told = [p for p in self._entries if p[0] == kind and namespace in (None, p[1])]
            for place in told:
                entry = self._entries[place]
                if place not in listed and entry.order <= since:
                    changed.add(self._remove(place))
            for place, thing in listed.items():
                old = self._entries.get(place)
                if old is not None and (
                    _version(old.thing) == _version(thing)
                    or (old.order > since and not _is_newer(thing, old.thing))
                ):
                    continue
                changed.add(self._store(place, thing))
            return {key for key in changed if key is not None}

    def take(self, kind: str, thing: Manifest, key: Key | None = None) -> Key | None:
        """Take in one object; the Federation it belongs to, if it was news.

        Args:
            kind: Of the object.
            thing: As the server sent it.
            key: The Federation, where the object does not say so itself.
        """
        with self._lock:
            place = _place(kind, thing)
            old = self._entries.get(place)
            if old is not None and not _is_newer(thing, old.thing):
                return None
            return self._store(place, thing, key)

    def drop(self, kind: str, thing: Manifest) -> Key | None:
        """An object is gone; the Federation it belonged to, unless a newer one has its name."""
        with self._lock:
            place = _place(kind, thing)
            old = self._entries.get(place)
            if old is None or _is_newer(old.thing, thing):
                return None
            return self._remove(place)

    def forget(self, kind: str, namespace: str, name: str) -> Key | None:
        """The server says that there is no such object."""
        with self._lock:
            return self._remove((kind, namespace, name))

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object; not to be changed."""
        with self._lock:
            entry = self._entries.get((kind, namespace, name))
            return None if entry is None else entry.thing

    def federation(self, key: Key) -> Manifest | None:
        """The Federation of this key."""
        return self.find(FEDERATION.name, *key)

    def federations(self) -> list[Key]:
        """All that there are."""
        with self._lock:
            return [(ns, name) for kind, ns, name in self._entries if kind == FEDERATION.name]

    def observed(self, key: Key) -> Observed:
        """What exists of a Federation, for a plan."""
        with self._lock:
            places = sorted(self._by_key.get(key, ()))
            things = [(place[0], self._entries[place].thing) for place in places]
            own = self._entries.get((FEDERATION.name, *key))
        return Observed(
            tuple(t for kind, t in things if kind not in (POD.name, FEDERATION.name)),
            tuple(t for kind, t in things if kind == POD.name),
            {} if own is None else own.thing.get("status") or {},
        )

    def _store(self, place: Place, thing: Manifest, key: Key | None = None) -> Key | None:
        self._remove(place)
        # Lists leave out what their items are.
        thing = thing if thing.get("kind") else {**thing, "kind": place[0]}
        own = (place[1], place[2]) if place[0] == FEDERATION.name else federation_of(thing)
        self._order += 1
        entry = _Entry(thing, key or own, self._order)
        self._entries[place] = entry
        if entry.key is not None:
            self._by_key.setdefault(entry.key, set()).add(place)
        return entry.key

    def _remove(self, place: Place) -> Key | None:
        entry = self._entries.pop(place, None)
        if entry is None or entry.key is None:
            return None
        places = self._by_key[entry.key]
        places.discard(place)
        if not places:
            del self._by_key[entry.key]
        return entry.key


def _place(kind: str, thing: Manifest) -> Place:
    meta = thing["metadata"]
    return kind, str(meta.get("namespace", "")), str(meta["name"])


def _version(thing: Manifest) -> str:
    return str(thing["metadata"].get("resourceVersion", ""))


def _is_newer(one: Manifest, other: Manifest) -> bool:
    """By the server's own count, which grows; a version that is no number is taken as it comes."""
    mine, theirs = _version(one), _version(other)
    if mine.isdecimal() and theirs.isdecimal():
        return int(mine) > int(theirs)
    return mine != theirs
