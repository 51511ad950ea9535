"""The heart: (a Federation, what exists, the time) -> what to do now, and what to say about it.

A plan compares states and remembers nothing: carried out wholly, partly or twice, the next one
goes on from what it finds. What has to wait (a drain, a deletion) is left out until its turn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from uncurtail.errors import UserError
from uncurtail.operator import names, status
from uncurtail.operator.actions import Action, Create, Delete, Event, PatchStatus, Scale, Update
from uncurtail.operator.children import build_children
from uncurtail.operator.diff import Change, change
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import (
    Observed,
    Ref,
    abandoned,
    declared_replicas,
    is_ending,
    is_owned,
    ordinal,
    pods_of,
    pool_label,
    ref_of,
)
from uncurtail.operator.poolspec import Pool
from uncurtail.operator.poolsteps import Step, leave_step, scale_step, stay_step
from uncurtail.operator.rules import problems, warnings
from uncurtail.operator.spec import Federation

WORKLOADS = ("StatefulSet", "DaemonSet")
RESYNC_S = 300.0  # watches may miss something; nothing else is periodic


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered actions, what to say, and when to look again even if nothing happens.

    `finished`: the Federation is being deleted and nothing of it has to be waited for.
    """

    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    status: Manifest = field(default_factory=dict)
    wake_s: float = RESYNC_S
    finished: bool = False


def plan(manifest: Manifest, observed: Observed, now: float) -> Plan:
    """Decide the next steps for a Federation.

    Args:
        manifest: The Federation as the API server holds it.
        observed: Its children, pods and status.
        now: Unix seconds.

    Returns:
        What to do. A spec that cannot be built changes nothing that runs; its status says why.
    """
    ending = is_ending(manifest)
    try:
        federation = Federation.of(manifest)
    except UserError as error:
        said = status.invalid(manifest, observed.status, (str(error),), now)
        return Plan(events=said.events, status=said.status, finished=ending)
    if ending:
        return _teardown(federation, observed, now)
    broken = problems(federation)
    if broken:
        said = status.invalid(manifest, observed.status, broken, now)
        return Plan(events=said.events, status=said.status)
    return _Build(federation, observed, now).plan()


class _Build:
    """One planning: collects as it goes through what is wanted and what is found."""

    def __init__(self, federation: Federation, observed: Observed, now: float) -> None:
        self._federation = federation
        self._now = now
        self._observed = observed
        self._found = {ref_of(child): child for child in observed.children}
        self._taken: list[str] = []
        self._actions: list[Action] = []
        self._events: list[Event] = []
        self._steps: dict[str, list[Step]] = {}
        self._abandoned: dict[str, list[Manifest]] = {}

    def plan(self) -> Plan:
        wanted = build_children(self._federation)
        refs = {ref_of(child) for child in wanted}
        pools = {pool.name: pool for pool in self._federation.spec.supernodes.pools}
        self._abandoned = abandoned(self._observed.pods, self._federation, refs)
        for child in wanted:
            pool = pools.get(pool_label(child) or "")
            if pool is not None and child["kind"] in WORKLOADS:
                self._workload(child, pool)
            elif pool is not None and child["kind"] == "SuperNodePool":
                self._scale(child, pool)
            else:
                self._plain(child)
        self._strays(refs)
        return self._finish()

    def _plain(self, child: Manifest) -> None:
        """Anything but a pool's workload."""
        found = self._usable(child)
        if found is None:
            return
        match change(child, found):
            case Change.NONE:
                pass
            case Change.UPDATE:
                self._update(child, found, "changed")
            case Change.REPAIR:
                self._update(child, found, "repaired")
            case Change.ORPHAN:
                self._delete(found, "Orphan", "a field that cannot be changed has changed")
            case Change.REPLACE:
                self._delete(found, "Foreground", "cannot be changed in place")
        if child["kind"] == "StatefulSet" and (found.get("spec") or {}).get("replicas", 1) != 1:
            self._actions.append(Scale(ref_of(found), 1, "there is one SuperLink"))

    def _scale(self, child: Manifest, pool: Pool) -> None:
        """The SuperNodePool: others set its replicas; a new word of the Federation replaces it."""
        found = self._usable(child)
        if found is None:
            return
        said = found.get("spec") or {}
        if said.get("federationReplicas") != pool.replicas:
            self._update(child, found, f"the Federation now says {pool.replicas}")
        elif change(child, found) is not Change.NONE:
            kept = {"replicas": said.get("replicas", pool.replicas)}
            self._update(child | {"spec": child["spec"] | kept}, found, "repaired")

    def _usable(self, child: Manifest) -> Manifest | None:
        """The found object if it is ours and stays; else what can be done now is done."""
        found = self._found.get(ref_of(child))
        if found is None:
            self._create(child)
        elif not is_owned(found, self._federation):
            self._taken.append(str(ref_of(child)))
        elif not is_ending(found):
            return found
        return None

    def _workload(self, child: Manifest, pool: Pool) -> None:
        pods = self._pods(pool.name, ref_of(child))
        found = self._found.get(ref_of(child))
        if found is None:
            self._first(child, pool, pods)
            return
        if not is_owned(found, self._federation):
            self._taken.append(str(ref_of(child)))
            return
        if is_ending(found):
            return
        decided = change(child, found)
        gone = self._paused(pool) and child["kind"] == "DaemonSet"
        if decided is Change.REPLACE or gone:
            reason = "paused" if gone else "its selector cannot be changed"
            self._leave(pool.name, found, pods, reason)
        elif decided is Change.ORPHAN:
            # The pods stay, and the next StatefulSet takes them over.
            self._delete(found, "Orphan", "a field that cannot be changed has changed")
        else:
            if decided is not Change.NONE:
                reason = "changed" if decided is Change.UPDATE else "repaired"
                self._update(child, found, reason)
            self._take(pool.name, self._scaled(found, pool, pods))

    def _first(self, child: Manifest, pool: Pool, pods: Sequence[Manifest]) -> None:
        """Make a workload, unless the pool is still served by one of the other kind."""
        name = child["metadata"]["name"]
        if any(Ref(kind, name) in self._found for kind in WORKLOADS):
            return
        if child["kind"] == "DaemonSet":
            if not self._paused(pool) and pool.name not in self._abandoned:
                self._create(child)
            return
        # Pods left by a StatefulSet that was made anew: it must not end them before they are done.
        living = [pod for pod in pods if not is_ending(pod)]
        before = max((ordinal(pod) + 1 for pod in living), default=0)
        # What is not there yet has nothing to scale: only whom to tell, and how far to go down.
        stand_in = child | {"spec": child["spec"] | {"replicas": before}}
        step = self._scaled(stand_in, pool, living)
        told = tuple(action for action in step.actions if not isinstance(action, Scale))
        events = tuple(event for event in step.events if event.reason != "Scaled")
        self._create(child | {"spec": child["spec"] | {"replicas": step.replicas}})
        self._take(pool.name, Step(told, events, step.drained, step.replicas))

    def _scaled(self, found: Manifest, pool: Pool, pods: Sequence[Manifest]) -> Step:
        if found["kind"] == "DaemonSet":
            return stay_step(pool.name, pods)
        times = (self._now, self._timeout_s(pool.name))
        return scale_step(pool.name, found, pods, self._wanted(pool), times)

    def _wanted(self, pool: Pool) -> int:
        if self._paused(pool):
            return 0
        return declared_replicas(pool, self._scale_of(pool))

    def _scale_of(self, pool: Pool) -> Manifest | None:
        found = self._found.get(Ref("SuperNodePool", names.supernodes_name(self._federation, pool)))
        ours = found is not None and is_owned(found, self._federation)
        return found if ours else None

    def _paused(self, pool: Pool) -> bool:
        return self._federation.spec.paused or pool.paused

    def _strays(self, wanted: set[Ref]) -> None:
        """What is ours and nobody wants: pools that were removed, other kinds, older operators'."""
        for ref, found in sorted(self._found.items()):
            if ref in wanted or not is_owned(found, self._federation) or is_ending(found):
                continue
            pool = pool_label(found)
            if pool is not None and ref.kind in WORKLOADS:
                self._leave(pool, found, self._pods(pool, ref), "not wanted any more")
            else:
                self._delete(found, "Foreground", "not wanted any more")
        for pool, pods in self._abandoned.items():
            step = leave_step(pool, pods, self._now, self._timeout_s(pool))
            self._take(pool, step)
            for pod in pods:
                if pod["metadata"]["name"] not in step.drained.waiting:
                    self._delete({**pod, "kind": "Pod"}, "Foreground", "left by its workload")

    def _leave(self, pool: str, found: Manifest, pods: Sequence[Manifest], reason: str) -> None:
        """Drain a whole workload, then delete it with its pods."""
        step = leave_step(pool, pods, self._now, self._timeout_s(pool))
        self._take(pool, step)
        if step.done:
            self._delete(found, "Foreground", reason)

    def _timeout_s(self, pool: str) -> float:
        return self._federation.drain_timeout_s(pool)

    def _pods(self, pool: str, workload: Ref) -> list[Manifest]:
        return pods_of(self._observed.pods, self._federation, pool, workload)

    def _take(self, pool: str, step: Step) -> None:
        before = len(self._actions)
        self._actions += step.actions
        self._events += [replace(event, after=before + event.after) for event in step.events]
        self._steps.setdefault(pool, []).append(step)

    def _create(self, child: Manifest) -> None:
        self._actions.append(Create(child))
        if child["kind"] in WORKLOADS:
            self._say("Created", str(ref_of(child)))

    def _update(self, child: Manifest, found: Manifest, reason: str) -> None:
        """Never the scale: what is there now stays until the plan says Scale."""
        if child["kind"] == "StatefulSet":
            live = (found.get("spec") or {}).get("replicas", 1)
            child = child | {"spec": child["spec"] | {"replicas": live}}
        self._actions.append(Update(child, reason))
        self._say("Updated", f"{ref_of(child)} {reason}")

    def _delete(self, found: Manifest, how: Literal["Foreground", "Orphan"], reason: str) -> None:
        ref, uid = ref_of(found), str(found["metadata"].get("uid", ""))
        self._actions.append(Delete(ref, uid, how, reason))
        self._say("Deleted", f"{ref}: {reason}")

    def _say(self, reason: str, text: str) -> None:
        """What is true once the actions so far are carried out."""
        self._events.append(Event("Normal", reason, text, after=len(self._actions)))

    def _finish(self) -> Plan:
        views = [self._view(pool) for pool in self._federation.spec.supernodes.pools]
        for pool, view in zip(self._federation.spec.supernodes.pools, views, strict=True):
            self._actions += self._scale_status(pool, view)
        said = status.valid(
            self._federation,
            self._observed.status,
            status.Facts(
                link_ready=self._link_ready(),
                pools=tuple(views),
                busy=bool(self._actions),
                taken=tuple(self._taken),
                warnings=warnings(self._federation),
            ),
            self._now,
        )
        return Plan(
            tuple(self._actions),
            (*self._events, *said.events),
            said.status,
            wake_s=_wake_s(step for steps in self._steps.values() for step in steps),
        )

    def _link_ready(self) -> bool:
        found = self._found.get(Ref("StatefulSet", names.superlink_name(self._federation)))
        return found is not None and (found.get("status") or {}).get("readyReplicas", 0) >= 1

    def _view(self, pool: Pool) -> status.PoolView:
        kind = self._federation.spec.mode
        found = self._found.get(Ref(kind, names.supernodes_name(self._federation, pool)), {})
        live = found.get("status") or {}
        steps = self._steps.get(pool.name, [])
        stateful = kind == "StatefulSet"
        scheduled = 0 if self._paused(pool) else int(live.get("desiredNumberScheduled", 0))
        return status.PoolView(
            name=pool.name,
            kind=kind,
            desired=self._wanted(pool) if stateful else scheduled,
            existing=int(live.get("replicas" if stateful else "currentNumberScheduled", 0)),
            ready=int(live.get("readyReplicas" if stateful else "numberReady", 0)),
            paused=self._paused(pool),
            draining=tuple(name for step in steps for name in step.drained.waiting),
            present=bool(found),
        )

    def _scale_status(self, pool: Pool, view: status.PoolView) -> list[Action]:
        found = self._scale_of(pool)
        if found is None or is_ending(found) or view.kind != "StatefulSet":
            return []
        selector = names.selector(self._federation, pool)
        said = {
            "replicas": view.existing,
            "readyReplicas": view.ready,
            "selector": ",".join(f"{key}={value}" for key, value in selector.items()),
            "phase": view.phase.value,
        }
        return [] if found.get("status") == said else [PatchStatus(ref_of(found), said)]


def _wake_s(steps: Iterable[Step]) -> float:
    """When the first of these drains runs out of time."""
    wakes = [step.drained.wake_s for step in steps]
    return min([RESYNC_S, *(wake_s for wake_s in wakes if wake_s is not None)])


def _teardown(federation: Federation, observed: Observed, now: float) -> Plan:
    """Drain every pool and end its workload; the garbage collector takes the rest."""
    ending: list[tuple[str, Manifest, list[Manifest]]] = []
    left = False
    for found in sorted(observed.children, key=ref_of):
        pool = pool_label(found)
        if pool is None or found["kind"] not in WORKLOADS or not is_owned(found, federation):
            continue
        left = True
        if not is_ending(found):
            pods = pods_of(observed.pods, federation, pool, ref_of(found))
            ending.append((pool, found, pods))
    for pool, pods in abandoned(observed.pods, federation, ()).items():
        ending += [(pool, {**pod, "kind": "Pod"}, [pod]) for pod in pods]
    actions: list[Action] = []
    steps: list[Step] = []
    for pool, found, pods in ending:
        step = leave_step(pool, pods, now, federation.drain_timeout_s(pool))
        steps.append(step)
        actions += step.actions
        if step.done:
            uid = str(found["metadata"].get("uid", ""))
            actions.append(Delete(ref_of(found), uid, "Foreground", "the Federation is deleted"))
    return Plan(
        tuple(actions),
        tuple(event for step in steps for event in step.events),
        dict(observed.status),
        wake_s=_wake_s(steps),
        finished=not left and not ending,
    )
