"""A Federation's `Cluster` at a real API server: the mirror is read, only changes are calls.

Everything is written by server-side apply or small patches under one field manager. What somebody
else made is never written to: an object is created only after a look that it is not there, and an
update names the uid of what it is meant for.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import assert_never

from uncurtail.adapters import clock
from uncurtail.adapters.kubernetes_api import Api, KubeError
from uncurtail.operating.kinds import EVENT, FEDERATION, KINDS, POD, Key
from uncurtail.operating.mirror import Mirror
from uncurtail.operator.actions import (
    Action,
    Annotate,
    Create,
    Delete,
    Event,
    PatchStatus,
    Scale,
    Update,
)
from uncurtail.operator.fields import Manifest
from uncurtail.operator.names import GROUP, MANAGER
from uncurtail.operator.observed import Observed, Ref, iso, ref_of
from uncurtail.operator.reconcile import ApiError

log = logging.getLogger("uncurtail.operator")

FINALIZER = f"{GROUP}/teardown"


class LiveCluster:
    """One Federation at the API server, for one reconciliation."""

    def __init__(self, api: Api, mirror: Mirror, key: Key) -> None:
        self._api = api
        self._mirror = mirror
        self._key = key
        self._namespace = key[0]
        self.retry_after_s: float | None = None  # what the server asked for last

    def observe(self, federation: Manifest) -> Observed:
        """What the mirror holds."""
        return self._mirror.observed(self._key)

    def apply(self, action: Action) -> None:
        """Carry out one action, and take in what the server answers.

        Raises:
            ApiError: It was refused, or got no answer.
        """
        try:
            self._carry_out(action)
        except KubeError as error:
            self.retry_after_s = error.retry_after_s
            raise ApiError(str(error), transient=error.transient) from None
        log.info("%s/%s: %s", *self._key, _told(action))

    def report(self, status: Manifest, events: Iterable[Event]) -> None:
        """Write the status where it differs, and post events.

        Raises:
            KubeError: It was refused, or got no answer. An event that is lost is only lost.
        """
        federation = self._mirror.federation(self._key)
        if federation is None:
            return
        if status and status != (federation.get("status") or {}):
            said = {
                "apiVersion": federation["apiVersion"],
                "kind": FEDERATION.name,
                "metadata": {"name": self._key[1], "uid": federation["metadata"]["uid"]},
                "status": status,
            }
            made = self._api.apply(FEDERATION.path(*self._key, "status"), said, MANAGER)
            self._mirror.take(FEDERATION.name, made)
        for event in events:
            self._post(federation, event)

    def claim(self, federation: Manifest) -> Manifest:
        """See to it that the Federation is not gone before its SuperNodes are drained."""
        kept = federation["metadata"].get("finalizers") or []
        return federation if FINALIZER in kept else self._finalizers([*kept, FINALIZER])

    def let_go(self, federation: Manifest) -> None:
        """Let the deletion of the Federation go through."""
        kept = federation["metadata"].get("finalizers") or []
        if FINALIZER in kept:
            self._finalizers([each for each in kept if each != FINALIZER])

    def _finalizers(self, wanted: list[str]) -> Manifest:
        federation = self._mirror.federation(self._key)
        assert federation is not None
        # With its version: a finalizer of somebody else that we have not seen is not lost.
        meta = {
            "finalizers": wanted,
            "resourceVersion": federation["metadata"]["resourceVersion"],
        }
        made = self._api.merge(FEDERATION.path(*self._key), {"metadata": meta}, MANAGER)
        self._mirror.take(FEDERATION.name, made)
        return made

    def _carry_out(self, action: Action) -> None:
        match action:
            case Create(manifest=wanted):
                self._create(wanted)
            case Update(manifest=wanted):
                self._update(wanted)
            case Delete():
                self._delete(action)
            case Scale(ref=ref, replicas=replicas):
                self._patch(ref, {"spec": {"replicas": replicas}})
            case Annotate(pod=pod, key=key, value=value):
                self._patch(Ref(POD.name, pod), {"metadata": {"annotations": {key: value}}})
            case PatchStatus(ref=ref, status=status):
                self._patch(ref, {"status": status}, "status")
            case _:
                assert_never(action)

    def _create(self, wanted: Manifest) -> None:
        """Make an object: by applying it, so that later applies know which fields were ours."""
        ref = ref_of(wanted)
        path = self._path(ref)
        there = self._api.find(path)
        if there is not None:
            # Another's, or ours without its labels: the next plan sees it.
            self._mirror.take(ref.kind, there, self._key)
            raise KubeError(f"{ref} exists", code=409)
        self._take(ref, self._api.apply(path, wanted, MANAGER, force=False))

    def _update(self, wanted: Manifest) -> None:
        ref = ref_of(wanted)
        meta = {**wanted["metadata"], "uid": self._known(ref)["metadata"]["uid"]}
        if ref.kind == "StatefulSet":
            # It carries a scale that must not be an old one.
            meta["resourceVersion"] = self._known(ref)["metadata"]["resourceVersion"]
        self._retaken(
            ref, lambda: self._api.apply(self._path(ref), {**wanted, "metadata": meta}, MANAGER)
        )

    def _patch(self, ref: Ref, patch: Manifest, part: str = "") -> None:
        path = self._path(ref, part)
        self._retaken(ref, lambda: self._api.merge(path, patch, MANAGER))

    def _delete(self, action: Delete) -> None:
        ref = action.ref
        try:
            answer = self._api.delete(self._path(ref), action.uid, action.propagation)
        except KubeError as error:
            if error.code == 404:
                self._mirror.forget(ref.kind, self._namespace, ref.name)
                return
            self._look_again(ref, error)
            raise
        if answer.get("kind") == ref.kind:
            self._take(ref, answer)  # it waits for its pods, or for somebody's finalizer
        else:
            self._mirror.forget(ref.kind, self._namespace, ref.name)

    def _retaken(self, ref: Ref, write: Callable[[], Manifest]) -> None:
        """Write, and take in the answer; where we were outrun, look at what is there now."""
        try:
            self._take(ref, write())
        except KubeError as error:
            self._look_again(ref, error)
            raise

    def _look_again(self, ref: Ref, error: KubeError) -> None:
        if error.code == 404:
            self._mirror.forget(ref.kind, self._namespace, ref.name)
        elif error.code == 409:
            found = self._api.find(self._path(ref))
            if found is not None:
                self._take(ref, found)

    def _known(self, ref: Ref) -> Manifest:
        found = self._mirror.find(ref.kind, self._namespace, ref.name)
        if found is None:
            raise KubeError(f"{ref} is gone", code=404)
        return found

    def _take(self, ref: Ref, thing: Manifest) -> None:
        if thing.get("kind") in (None, ref.kind):
            self._mirror.take(ref.kind, thing, self._key)

    def _path(self, ref: Ref, part: str = "") -> str:
        return KINDS[ref.kind].path(self._namespace, ref.name, part)

    def _post(self, federation: Manifest, event: Event) -> None:
        meta = federation["metadata"]
        now = clock.wall()
        # The same words at the same second are one event, should the call be made twice.
        text = f"{meta['uid']}{event.reason}{event.message}{int(now)}"
        name = f"{meta['name']}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        body = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"name": name, "namespace": self._namespace},
            "involvedObject": {
                "apiVersion": federation["apiVersion"],
                "kind": FEDERATION.name,
                "name": meta["name"],
                "namespace": self._namespace,
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "firstTimestamp": iso(now),
            "lastTimestamp": iso(now),
            "count": 1,
        }
        try:
            self._api.call("POST", EVENT.path(self._namespace), body, fieldManager=MANAGER)
        except KubeError as error:
            # Nothing rests on events; 409 is one that was posted by a call that lost its answer.
            log.info("an event of %s is lost: %s", meta["name"], error)


def _told(action: object) -> str:
    """An action in a line, without the whole object."""
    named = getattr(action, "manifest", None)
    what = f"{named['kind']} {named['metadata']['name']}" if named else str(action)
    return f"{type(action).__name__.lower()} {what}"
