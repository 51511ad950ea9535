"""What a Federation's status says: counts, warnings, and dated conditions."""

from dataclasses import dataclass

from uncurtail.operator.actions import Event
from uncurtail.operator.fields import Manifest
from uncurtail.operator.names import superlink_name
from uncurtail.operator.observed import iso
from uncurtail.operator.poolsteps import Phase
from uncurtail.operator.spec import Federation


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool as it is seen."""

    name: str
    kind: str
    desired: int
    existing: int
    ready: int
    paused: bool
    draining: tuple[str, ...]
    present: bool

    @property
    def phase(self) -> Phase:
        """In one word."""
        if self.draining:
            return Phase.DRAINING
        if self.paused and self.existing == 0:
            return Phase.PAUSED
        # A DaemonSet on no node is as complete as it can be; one that is not there is not.
        whole = self.ready >= self.desired and self.existing <= self.desired
        return Phase.RUNNING if whole and (self.present or self.desired == 0) else Phase.PENDING


@dataclass(frozen=True, slots=True)
class Facts:
    """What the status is made of."""

    link_ready: bool
    pools: tuple[PoolView, ...]
    busy: bool
    taken: tuple[str, ...]  # objects with our names that are another's
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A status, and the events that tell how it differs from the one before."""

    status: Manifest
    events: tuple[Event, ...]


def valid(federation: Federation, before: Manifest, facts: Facts, now: float) -> Said:
    """The status of a Federation that can be built."""
    ready = sum(pool.ready for pool in facts.pools)
    desired = sum(pool.desired for pool in facts.pools)
    draining = sorted(name for pool in facts.pools for name in pool.draining)
    spec = federation.spec
    host = f"{superlink_name(federation)}.{federation.namespace}.svc"
    conditions = [
        _ready(facts),
        _truth("Progressing", facts.busy or bool(draining), "Reconciling", "Settled", ""),
        _truth("Draining", bool(draining), "SuperNodesLeaving", "Settled", ", ".join(draining)),
        _truth("Paused", all(p.paused for p in facts.pools), "PausedBySpec", "Active", ""),
        _truth("Degraded", bool(facts.taken), "NameTaken", "AsExpected", _taken(facts.taken)),
    ]
    status: Manifest = {
        "observedGeneration": federation.generation,
        "supernodes": f"{ready}/{desired}",
        "readySupernodes": ready,
        "desiredSupernodes": desired,
        "endpoints": {"superlinkService": f"{host}:{spec.superlink.service.ports.extra}"},
        "pools": [
            {
                "name": pool.name,
                "kind": pool.kind,
                "desired": pool.desired,
                "ready": pool.ready,
                "phase": pool.phase.value,
                "draining": list(pool.draining),
            }
            for pool in facts.pools
        ],
        "warnings": list(facts.warnings),
        "conditions": _dated(conditions, before, federation.generation, now),
    }
    fresh = [w for w in facts.warnings if w not in (before.get("warnings") or [])]
    events = [Event("Warning", "NoEffect", warning) for warning in fresh]
    return Said(status, (*events, *_changes(before, status)))


def invalid(manifest: Manifest, before: Manifest, problems: tuple[str, ...], now: float) -> Said:
    """The status of one that cannot be built: what runs goes on, and the cause is named."""
    generation = manifest["metadata"].get("generation", 1)
    text = "; ".join(problems)
    new = [
        _condition("Degraded", True, "InvalidSpec", text),
        _condition("Ready", False, "InvalidSpec", text),
    ]
    kept = [c for c in before.get("conditions") or [] if c["type"] not in ("Degraded", "Ready")]
    dated = [*kept, *_dated(new, before, generation, now)]
    status = {**before, "observedGeneration": generation, "conditions": dated}
    return Said(status, _changes(before, status))


def refused(said: Manifest, before: Manifest, what: str, now: float) -> Said:
    """A status whose plan the API server did not let us carry out."""
    generation = int(said.get("observedGeneration", 1))
    degraded = _dated([_condition("Degraded", True, "Refused", what)], before, generation, now)
    others = [c for c in said.get("conditions") or [] if c["type"] != "Degraded"]
    status = {**said, "conditions": [*others, *degraded]}
    return Said(status, _changes(before, status))


def _ready(facts: Facts) -> Manifest:
    missing = [] if facts.link_ready else ["the SuperLink"]
    missing += [
        f"pool {pool.name} ({pool.ready}/{pool.desired})"
        for pool in facts.pools
        if pool.phase is Phase.PENDING
    ]
    text = f"not ready: {', '.join(missing)}" if missing else "everything that is wanted is ready"
    return _condition("Ready", not missing, "NotReady" if missing else "AllReady", text)


def _taken(refs: tuple[str, ...]) -> str:
    return f"not ours, and in the way: {', '.join(refs)}; rename or delete it" if refs else ""


def _truth(kind: str, holds: bool, yes: str, no: str, text: str) -> Manifest:
    return _condition(kind, holds, yes if holds else no, text)


def _condition(kind: str, holds: bool, reason: str, text: str) -> Manifest:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": text[:32768],
    }


def _dated(
    conditions: list[Manifest], before: Manifest, generation: int, now: float
) -> list[Manifest]:
    """With the time at which each last changed its status."""
    known = {c["type"]: c for c in before.get("conditions") or []}
    dated = []
    for condition in conditions:
        last = known.get(condition["type"])
        same = last is not None and last["status"] == condition["status"]
        since = last["lastTransitionTime"] if last is not None and same else iso(now)
        dated.append({**condition, "observedGeneration": generation, "lastTransitionTime": since})
    return dated


def _changes(before: Manifest, after: Manifest) -> tuple[Event, ...]:
    """Events for what became ready, stopped being so, or degraded for a new reason."""
    old = {c["type"]: c for c in before.get("conditions") or []}
    events = []
    for condition in after["conditions"]:
        last = old.get(condition["type"], {})
        kind, text = condition["type"], condition["message"]
        turned = last.get("status") != condition["status"]
        if kind == "Ready" and turned and (last or condition["status"] == "True"):
            good = condition["status"] == "True"
            events.append(Event("Normal" if good else "Warning", condition["reason"], text))
        new = turned or last.get("message") != text
        if kind == "Degraded" and condition["status"] == "True" and new:
            events.append(Event("Warning", condition["reason"], text))
    return tuple(events)
