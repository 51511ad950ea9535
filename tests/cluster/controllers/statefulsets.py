"""StatefulSets: pods with ordinals, claims of their own, and updates from the highest down."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.api import Api
from tests.cluster.controllers import pods
from tests.cluster.objects import (
    Json,
    controller_of,
    is_ending,
    owner_reference,
    owners_of,
)
from tests.cluster.refusals import ApiError
from tests.cluster.selectors import by_label_selector


@dataclass
class StatefulSets:
    """Knows the templates that it has seen: pods below the partition keep an older one."""

    templates: dict[tuple[str, str], Json] = field(default_factory=dict)

    def step(self, api: Api) -> None:
        for thing in api.list("statefulsets"):
            if not is_ending(thing):
                _One(api, thing, self.templates).reconcile()


def _update(part: str, **fields: Any) -> Callable[[Json], None]:
    return lambda thing: thing[part].update(fields)


def ordinal_of(pod: Json) -> int:
    return int(pod["metadata"]["name"].rpartition("-")[2])


@dataclass
class _One:
    """One StatefulSet and its pods."""

    api: Api
    thing: Json
    templates: dict[tuple[str, str], Json]

    def __post_init__(self) -> None:
        self.spec = self.thing["spec"]
        self._adopt()
        uid = self.thing["metadata"]["uid"]
        self.update = pods.revision_of(self.spec["template"])
        self.templates[uid, self.update] = self.spec["template"]
        self.current = self.thing.get("status", {}).get("currentRevision") or self.update
        self.template = self.templates.get((uid, self.current), self.spec["template"])
        self.pods = {ordinal_of(pod): pod for pod in pods.owned_by(self.api, self.thing)}
        start = (self.spec.get("ordinals") or {}).get("start", 0)
        self.wanted = range(start, start + self.spec["replicas"])
        self.is_ordered = self.spec["podManagementPolicy"] == "OrderedReady"

    def reconcile(self) -> None:
        if self._fill() and self._shrink():
            self._roll()
        self._write_status()

    def _adopt(self) -> None:
        """Take over pods that belong here by name and labels, and that nobody controls."""
        matches = by_label_selector(self.spec["selector"])
        for pod in self.api.list("pods", self.thing["metadata"]["namespace"]):
            name, _, number = pod["metadata"]["name"].rpartition("-")
            ours = name == self.thing["metadata"]["name"] and number.isdecimal()
            if ours and matches(pod) and controller_of(pod) is None and not is_ending(pod):
                owners = [*owners_of(pod), owner_reference(self.thing)]
                self.api.change(pod, _update("metadata", ownerReferences=owners))

    def _fill(self) -> bool:
        """Make the pods that are missing; whether all are there and, where order counts, ready."""
        for ordinal in self.wanted:
            pod = self.pods.get(ordinal)
            if pod is None:
                if not self._make(ordinal) or self.is_ordered:
                    return False
            elif pods.has_ended(pod) and not is_ending(pod):
                pods.delete(self.api, pod)
                return False
            elif self.is_ordered and not pods.is_up(pod):
                return False
        return True

    def _make(self, ordinal: int) -> bool:
        name = f"{self.thing['metadata']['name']}-{ordinal}"
        is_old = ordinal < self._partition() and self.current != self.update
        template = self.template if is_old else self.spec["template"]
        labels = {
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(ordinal),
            pods.REVISION: self.current if is_old else self.update,
        }
        pod = pods.from_template(self.thing, template, name=name, labels=labels)
        pod["spec"]["hostname"] = name
        pod["spec"]["subdomain"] = self.spec.get("serviceName", "")
        volumes = pod["spec"].setdefault("volumes", [])
        for claim in self.spec.get("volumeClaimTemplates") or []:
            short = claim["metadata"]["name"]
            source = {"claimName": f"{short}-{name}"}
            volumes[:] = [v for v in volumes if v["name"] != short]
            volumes.append({"name": short, "persistentVolumeClaim": source})
            self._claim(claim, f"{short}-{name}")
        return pods.create(self.api, self.thing, pod)

    def _claim(self, template: Json, name: str) -> None:
        """Make a pod's claim, unless it is there from before."""
        namespace = self.thing["metadata"]["namespace"]
        resource = self.api.resources.by_plural("persistentvolumeclaims")
        try:
            self.api.get(resource, namespace, name)
        except ApiError:
            metadata = {
                "name": name,
                "namespace": namespace,
                "labels": {
                    **self.spec["selector"].get("matchLabels", {}),
                    **(template["metadata"].get("labels") or {}),
                },
            }
            if self._retention("whenDeleted") == "Delete":
                metadata["ownerReferences"] = [owner_reference(self.thing)]
            self.api.create(resource, namespace, {"metadata": metadata, "spec": template["spec"]})

    def _retention(self, when: str) -> str:
        return str(self.spec["persistentVolumeClaimRetentionPolicy"][when])

    def _shrink(self) -> bool:
        """Delete what is beyond the replicas, highest first; whether nothing is."""
        beyond = sorted((o for o in self.pods if o not in self.wanted), reverse=True)
        for ordinal in beyond:
            pod = self.pods[ordinal]
            if not is_ending(pod):
                if self._retention("whenScaled") == "Delete":
                    self._give_claims_to(pod)
                pods.delete(self.api, pod)
            if self.is_ordered:
                return False
        return not beyond

    def _give_claims_to(self, pod: Json) -> None:
        """Let the claims of a pod go with it."""
        reference = {**owner_reference(pod), "controller": False, "blockOwnerDeletion": False}
        resource = self.api.resources.by_plural("persistentvolumeclaims")
        for claim in self.spec.get("volumeClaimTemplates") or []:
            name = f"{claim['metadata']['name']}-{pod['metadata']['name']}"
            found = self.api.get(resource, pod["metadata"]["namespace"], name)
            owners = [*owners_of(found), reference]
            self.api.change(found, _update("metadata", ownerReferences=owners))

    def _partition(self) -> int:
        rolling = self.spec["updateStrategy"].get("rollingUpdate") or {}
        return int(rolling.get("partition", 0))

    def _roll(self) -> None:
        """Replace one pod of an old revision, from the highest down to the partition."""
        if self.spec["updateStrategy"]["type"] != "RollingUpdate":
            return
        for ordinal in sorted(self.wanted, reverse=True):
            pod = self.pods.get(ordinal)
            if ordinal < self._partition() or pod is None:
                return
            if not pods.is_of(pod, self.update) and not is_ending(pod):
                pods.delete(self.api, pod)
                return
            if not pods.is_up(pod):
                return

    def _write_status(self) -> None:
        mine = pods.owned_by(self.api, self.thing)
        ready = [pod for pod in mine if pods.is_up(pod)]
        updated = [pod for pod in mine if pods.is_of(pod, self.update)]
        is_done = len(updated) == len(mine) == self.spec["replicas"] == len(ready)
        current = self.update if is_done else self.current
        status = {
            "observedGeneration": self.thing["metadata"]["generation"],
            "replicas": len(mine),
            "readyReplicas": len(ready),
            "availableReplicas": len(ready),
            "updatedReplicas": len(updated),
            "currentReplicas": sum(pods.is_of(pod, current) for pod in mine),
            "currentRevision": current,
            "updateRevision": self.update,
            "collisionCount": 0,
        }
        pods.write_status(self.api, self.thing, status)
