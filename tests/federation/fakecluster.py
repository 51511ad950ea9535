"""An API server and its controllers in memory: enough of them to see where plans lead.

It refuses what the real one refuses (changes of fixed fields, a second object of one name), adds
defaults as the real one does, and its StatefulSets and DaemonSets have pods.
"""

import copy
import itertools
import re
from collections.abc import Iterable
from typing import Any

from tests.federation.federations import UID
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
from uncurtail.operator.names import DRAIN_REQUESTED_AT, DRAINED, POOL_LABEL
from uncurtail.operator.observed import Observed, Ref, ref_of, unix_or_none
from uncurtail.operator.plan import WORKLOADS
from uncurtail.operator.reconcile import ApiError, Outcome, reconcile

OWNER = [{"kind": "Federation", "name": "fed", "uid": UID, "controller": True}]
FIXED = ("serviceName", "podManagementPolicy", "volumeClaimTemplates", "selector")


class FakeCluster:
    def __init__(self, nodes: int = 2) -> None:
        self.nodes = nodes
        self.now = 1_800_000_000.0
        self.objects: dict[Ref, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.status: dict[str, Any] = {}
        self.events: list[Event] = []
        self.actions: list[Action] = []
        self.ended: list[tuple[str, str]] = []  # pods that were stopped, and how
        self.refuse: str | None = None
        self.fail_after: int | None = None  # so many actions succeed, the next ones do not
        self.most_kinds_at_once = 0
        self._uids = itertools.count(1)

    # -- what a user or another controller does --

    def add(self, kind, name, *, labels=None, replicas=1, owned=True):
        labels = labels or {}
        self.objects[Ref(kind, name)] = {
            "kind": kind,
            "metadata": {
                "name": name,
                "uid": f"u{next(self._uids)}",
                "labels": labels,
                "ownerReferences": OWNER if owned else [],
            },
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}},
            },
        }
        self._controllers()

    def scale(self, name, replicas):
        self.objects[Ref("SuperNodePool", name)]["spec"]["replicas"] = replicas

    def say_drained(self, pod):
        self.pods[pod]["metadata"].setdefault("annotations", {})[DRAINED] = "true"

    # -- one reconciliation, and as many as it takes --

    def reconcile(self, federation) -> Outcome:
        outcome = reconcile(self, federation, self.now)
        self._controllers()
        return outcome

    def settle(self, federation, *, most=60) -> int:
        """Reconcile until nothing is left to do, waiting as long as each plan says."""
        for count in range(most):
            outcome = self.reconcile(federation)
            if not outcome.plan.actions and not self._waiting(outcome):
                return count
            self.now += 1.0 if outcome.plan.actions else outcome.plan.wake_s
        raise AssertionError(f"still at it: {outcome.plan.actions}")

    def _waiting(self, outcome: Outcome) -> bool:
        ending = any("deletionTimestamp" in o["metadata"] for o in self.objects.values())
        return ending or outcome.plan.wake_s < 300.0

    # -- what tests look at --

    def pod_names(self) -> list[str]:
        return sorted(name for name in self.pods if "supernode" in name)

    def kinds_with_pods(self, pool="gpu") -> set[str]:
        """Of the workloads that a pool's pods belong to."""
        owners = [
            pod["metadata"]["ownerReferences"]
            for pod in self.pods.values()
            if pod["metadata"]["labels"].get(POOL_LABEL) == pool
        ]
        return {owner[0]["kind"] for owner in owners if owner}

    def condition(self, kind) -> str:
        return next(str(c["status"]) for c in self.status["conditions"] if c["type"] == kind)

    def message(self, kind) -> str:
        return next(str(c["message"]) for c in self.status["conditions"] if c["type"] == kind)

    # -- the Cluster of the operator --

    def observe(self, federation) -> Observed:
        return copy.deepcopy(
            Observed(tuple(self.objects.values()), tuple(self.pods.values()), self.status)
        )

    def report(self, status, events: Iterable[Event]) -> None:
        self.status = copy.deepcopy(status)
        self.events += events

    def apply(self, action: Action) -> None:
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise ApiError("conflict", transient=True)
        if self.refuse is not None:
            raise ApiError(self.refuse, transient=self.refuse == "conflict")
        self.actions.append(action)
        match action:
            case Create(manifest=wanted):
                self._create(wanted)
            case Update(manifest=wanted):
                self._update(wanted)
            case Delete(ref=ref, uid=uid, propagation=how):
                self._delete(ref, uid, how)
            case Scale(ref=ref, replicas=replicas):
                self.objects[ref]["spec"]["replicas"] = replicas
            case Annotate(pod=pod, key=key, value=value):
                notes = self.pods[pod]["metadata"].setdefault("annotations", {})
                notes.pop(key, None)
                notes |= {} if value is None else {key: value}
            case PatchStatus(ref=ref, status=status):
                self.objects[ref]["status"] = copy.deepcopy(status)

    def _create(self, wanted) -> None:
        ref = ref_of(wanted)
        if ref in self.objects:
            raise ApiError(f"{ref} exists", transient=True)
        made = stored(wanted)
        made["metadata"]["uid"] = f"u{next(self._uids)}"
        self.objects[ref] = made

    def _update(self, wanted) -> None:
        ref = ref_of(wanted)
        found, made = self.objects[ref], stored(wanted)
        if ref.kind == "StatefulSet":
            for field in FIXED:
                if found["spec"].get(field) != made["spec"].get(field):
                    raise ApiError(f"{ref}: {field} may not change", transient=False)
        if ref.kind == "DaemonSet":
            assert found["spec"]["selector"] == made["spec"]["selector"]
        made["metadata"]["uid"] = found["metadata"]["uid"]
        made |= {"status": found["status"]} if "status" in found else {}
        self.objects[ref] = made

    def _delete(self, ref, uid, how) -> None:
        if ref.kind == "Pod":
            assert self.pods[ref.name]["metadata"]["uid"] == uid
            self._end(self.pods[ref.name], "deleted")
            return
        assert self.objects[ref]["metadata"]["uid"] == uid
        if how == "Orphan":
            del self.objects[ref]
            for pod in self._of(ref):
                pod["metadata"]["ownerReferences"] = []
        elif ref.kind in WORKLOADS:
            self.objects[ref]["metadata"]["deletionTimestamp"] = "now"
        else:
            del self.objects[ref]

    # -- controllers --

    def _controllers(self) -> None:
        for ref in sorted(self.objects):
            if ref.kind in WORKLOADS:
                self._run(ref)
        for pool in ("gpu", "cpu"):
            now = len(self.kinds_with_pods(pool))
            self.most_kinds_at_once = max(self.most_kinds_at_once, now)

    def _run(self, ref) -> None:
        found = self.objects[ref]
        if "deletionTimestamp" in found["metadata"]:
            for pod in self._of(ref):
                self._end(pod, "deleted")
            del self.objects[ref]
            return
        stateful = ref.kind == "StatefulSet"
        count = found["spec"].get("replicas", 1) if stateful else self.nodes
        names = [f"{ref.name}-{i}" if stateful else f"{ref.name}-n{i}x" for i in range(count)]
        for pod in self._of(ref, orphans=True):
            pod["metadata"]["ownerReferences"] = [
                {"kind": ref.kind, "name": ref.name, "controller": True}
            ]
            if pod["metadata"]["name"] not in names:
                self._end(pod, "scaled down")
        for name in names:
            self.pods.setdefault(name, self._pod(ref, name, found))
        ready = {"replicas": count, "readyReplicas": count}
        daemons = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady")
        found["status"] = ready if stateful else dict.fromkeys(daemons, count)

    def _pod(self, ref, name, found) -> dict[str, Any]:
        return {
            "kind": "Pod",
            "metadata": {
                "name": name,
                "uid": f"u{next(self._uids)}",
                "labels": dict(found["spec"]["template"]["metadata"]["labels"]),
                "ownerReferences": [{"kind": ref.kind, "name": ref.name, "controller": True}],
            },
            "status": {"phase": "Running"},
        }

    def _of(self, ref, *, orphans=False):
        return [
            pod
            for pod in self.pods.values()
            if self._owner(pod) == ref
            or (orphans and not self._owner(pod) and pod["metadata"]["name"].startswith(ref.name))
        ]

    def _owner(self, pod) -> Ref | None:
        owners = pod["metadata"]["ownerReferences"]
        return Ref(owners[0]["kind"], owners[0]["name"]) if owners else None

    def _end(self, pod, why) -> None:
        """Note how long a pod knew, or that it had said it was done."""
        notes = pod["metadata"].get("annotations", {})
        since = unix_or_none(notes.get(DRAIN_REQUESTED_AT))
        told = "never told" if since is None else f"told {self.now - since:.0f} s ago"
        self.ended.append((pod["metadata"]["name"], "drained" if DRAINED in notes else told))
        del self.pods[pod["metadata"]["name"]]


def stored(wanted) -> dict[str, Any]:
    """As the API server keeps it: with its defaults, without what is empty, in its own numbers."""
    made: dict[str, Any] = copy.deepcopy(wanted)
    if wanted["kind"] == "SuperNodePool":
        return made  # a custom resource is kept as it came
    made = _canonical(made)
    template = made.get("spec", {}).get("template")
    if template:
        template["spec"] |= {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst"}
        for each in template["spec"]["containers"]:
            each |= {"terminationMessagePath": "/dev/termination-log"}
    for claim in made.get("spec", {}).get("volumeClaimTemplates", []):
        claim["spec"]["volumeMode"] = "Filesystem"
        claim["status"] = {"phase": "Pending"}
    return made


def _canonical(value):
    if isinstance(value, dict):
        cleaned = {key: _canonical(each) for key, each in value.items()}
        return {k: v for k, v in cleaned.items() if v or (v == 0 and v is not False)}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    milli = re.fullmatch(r"(\d+)000m", value) if isinstance(value, str) else None
    return milli[1] if milli else value
