"""Who leads, of several operators: the holder of a Lease, until it does not renew it in time.

Clocks are not compared: a lease has run out when its record has not changed for its duration by the
observer's own clock. Whoever cannot renew for longer than `RENEW_WITHIN_S` no longer leads, before
anyone else can.
"""

from collections.abc import Callable
from dataclasses import dataclass

from uncurtail.adapters.kubernetes_api import Api, KubeError
from uncurtail.operating.kinds import LEASE
from uncurtail.operator.fields import Manifest

LAST_S = 15
RENEW_WITHIN_S = 10.0
EVERY_S = 3.0


@dataclass(frozen=True, slots=True)
class Sight:
    """A lease's record, and when it was first seen to be so. Monotonic."""

    record: tuple[str, str] | None = None  # holder, time of renewal
    since: float = 0.0


def may_hold(lease: Manifest | None, me: str, sight: Sight, now: float) -> bool:
    """Whether the lease is ours, nobody's, or run out."""
    if lease is None:
        return True
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    last_s = float(spec.get("leaseDurationSeconds") or LAST_S)
    return holder in ("", me) or now - sight.since > last_s


class Lease:
    """Our view of one Lease; `turn` is to be called every `EVERY_S`."""

    def __init__(
        self,
        api: Api,
        place: tuple[str, str],
        me: str,
        *,
        monotonic: Callable[[], float],
        stamp: Callable[[], str],
    ) -> None:
        """`place` is namespace and name; `stamp` says the time as Kubernetes writes it."""
        self._api = api
        self._place = place
        self._me = me
        self._now = monotonic
        self._stamp = stamp
        self._sight = Sight()
        self._renewed_at = float("-inf")

    @property
    def held(self) -> bool:
        """Whether we lead now, whatever the API server has to say about it later."""
        return self._now() - self._renewed_at < RENEW_WITHIN_S

    def turn(self) -> None:
        """Renew the lease, or take it if it may be taken.

        Raises:
            KubeError: The server refused, or did not answer.
        """
        asked_at = self._now()
        lease = self._api.find(LEASE.path(*self._place))
        self._look(lease)
        if not may_hold(lease, self._me, self._sight, self._now()):
            self._renewed_at = float("-inf")
            return
        try:
            self._look(self._write(lease, self._me))
        except KubeError as error:
            if error.code == 409:
                return  # somebody was faster
            raise
        self._renewed_at = asked_at

    def give_up(self) -> None:
        """Let the next one lead at once."""
        if self.held:
            self._renewed_at = float("-inf")
            self._write(self._api.find(LEASE.path(*self._place)), "")

    def _look(self, lease: Manifest | None) -> None:
        spec = (lease or {}).get("spec") or {}
        record = (str(spec.get("holderIdentity")), str(spec.get("renewTime")))
        if record != self._sight.record:
            self._sight = Sight(record, self._now())

    def _write(self, lease: Manifest | None, holder: str) -> Manifest:
        before = (lease or {}).get("spec") or {}
        moved = before.get("holderIdentity") != holder
        stamp = self._stamp()
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": LAST_S,
            "renewTime": stamp,
            "acquireTime": stamp if moved else before.get("acquireTime", stamp),
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + int(moved),
        }
        namespace, name = self._place
        body: Manifest = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
        if lease is None:
            return self._api.call("POST", LEASE.path(namespace), body)
        # Named by its version: of two that take it at once, one has a conflict.
        body["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return self._api.call("PUT", LEASE.path(*self._place), body)
