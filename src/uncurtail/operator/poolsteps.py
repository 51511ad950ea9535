"""One pool, one step closer to what it should be: scaled up at once, and down only when drained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from uncurtail.operator import names
from uncurtail.operator.actions import Action, Annotate, Event, Scale
from uncurtail.operator.drain import Drained, drain, spared
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import is_ending, iso, ordinal, ref_of


class Phase(StrEnum):
    """Where a pool stands, as its status says it."""

    PENDING = "Pending"  # not everything that is wanted is ready
    RUNNING = "Running"
    DRAINING = "Draining"
    PAUSED = "Paused"


@dataclass(frozen=True, slots=True)
class Step:
    """What to do for a pool now; `replicas` is what its StatefulSet may have meanwhile."""

    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    drained: Drained = field(default_factory=Drained)
    replicas: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is waited for."""
        return not self.drained.waiting


def scale_step(
    pool: str,
    found: Manifest,
    pods: Sequence[Manifest],
    wanted: int,
    now_and_timeout: tuple[float, float],
) -> Step:
    """Bring a StatefulSet to `wanted` replicas.

    It always ends its highest ordinal first, so it may go down to the highest pod that still
    works. Pods that need not go after all are told so.
    """
    now, timeout_s = now_and_timeout
    live = int((found.get("spec") or {}).get("replicas", 1))
    doomed = [pod for pod in pods if ordinal(pod) >= wanted]
    drained = drain(doomed, now, timeout_s) if live > wanted else Drained()
    waiting = [ordinal(pod) for pod in doomed if pod["metadata"]["name"] in drained.waiting]
    replicas = (
        min(live, max([wanted, *(number + 1 for number in waiting)])) if live > wanted else wanted
    )
    kept = spared([pod for pod in pods if ordinal(pod) < wanted])
    actions: list[Action] = [*_unmark(kept)]
    events = [*_kept_event(pool, kept, len(actions))]
    actions += _mark(drained, now)
    events += _drain_event(pool, drained, timeout_s, len(actions))
    if replicas != live:
        actions.append(Scale(ref_of(found), replicas, f"from {live} to {replicas}"))
        text = f"pool {pool}: from {live} to {replicas} SuperNodes"
        events.append(Event("Normal", "Scaled", text, after=len(actions)))
    return Step(tuple(actions), tuple(events), drained, replicas)


def leave_step(pool: str, pods: Sequence[Manifest], now: float, timeout_s: float) -> Step:
    """Drain every pod of a workload that has to go as a whole."""
    drained = drain(pods, now, timeout_s)
    actions = _mark(drained, now)
    return Step(actions, _drain_event(pool, drained, timeout_s, len(actions)), drained)


def stay_step(pool: str, pods: Sequence[Manifest]) -> Step:
    """Nothing has to go; whoever was told so stays."""
    kept = spared([pod for pod in pods if not is_ending(pod)])
    actions = _unmark(kept)
    return Step(actions, _kept_event(pool, kept, len(actions)))


def _mark(drained: Drained, now: float) -> tuple[Action, ...]:
    return tuple(Annotate(pod, names.DRAIN_REQUESTED_AT, iso(now)) for pod in drained.mark)


def _unmark(pods: Sequence[str]) -> tuple[Action, ...]:
    keys = (names.DRAIN_REQUESTED_AT, names.DRAINED)
    return tuple(Annotate(pod, key, None) for pod in pods for key in keys)


def _drain_event(pool: str, drained: Drained, timeout_s: float, after: int) -> tuple[Event, ...]:
    if not drained.mark:
        return ()
    text = f"pool {pool}: {', '.join(drained.mark)} asked to leave within {timeout_s:.0f} s"
    return (Event("Normal", "Draining", text, after),)


def _kept_event(pool: str, pods: Sequence[str], after: int) -> tuple[Event, ...]:
    if not pods:
        return ()
    return (Event("Normal", "DrainCancelled", f"pool {pool}: {', '.join(pods)} may stay", after),)
