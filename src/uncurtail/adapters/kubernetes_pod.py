"""A site as pods of its own: each session is one plain pod of an image. No operator is needed."""

from collections.abc import Mapping, Sequence

from uncurtail.adapters.kubernetes import MANAGER, POD, SECRET, digest, gone, secret, state_of
from uncurtail.adapters.kubernetes_api import JSON, Api, KubeError, Manifest
from uncurtail.core.clouds import KubernetesSite
from uncurtail.core.nodes import Node, NodeState
from uncurtail.operator.hardening import container_context, pod_context

RUN = "uncurtail.dev/run"
SITE = "uncurtail.dev/site"
SESSION = "uncurtail.dev/session"
TOLD = "uncurtail.dev/told"  # once its Secret is written


class PodPlace:
    """The pods of one site."""

    def __init__(
        self,
        api: Api,
        run_id: str,
        site: str,
        machine: KubernetesSite,
        *,
        namespace: str,
        grace_s: float,
    ) -> None:
        """`grace_s`: what a pod that is told to end may take to hand in its work."""
        self._api = api
        self._run = digest(run_id)
        self._site = site
        self._machine = machine
        self._namespace = namespace
        self._grace_s = grace_s

    def look(self) -> Sequence[Node]:
        """The pods of this run and site."""
        listed = self._api.get(POD.path(self._namespace), f"{RUN}={self._run},{SITE}={self._site}")
        found = []
        for pod in listed.get("items") or []:
            meta = pod["metadata"]
            number = meta["labels"].get(SESSION, "")
            if number.isdecimal():
                state, why = state_of(pod)
                untold = TOLD not in (meta.get("annotations") or {})
                if untold and state in (NodeState.STARTING, NodeState.READY):
                    state = NodeState.PARTIAL
                found.append(Node(self._site, int(number), str(meta["name"]), state, why))
        return found

    def create(self, session: int, environment: Mapping[str, str]) -> None:
        """Make the pod, then what it is told, which goes with it: it waits for that."""
        name = f"uc-{self._run}-{self._site}-{session}"
        try:
            path = POD.path(self._namespace)
            pod = self._api.call("POST", path, self._pod(name, session), JSON, fieldManager=MANAGER)
        except KubeError as error:
            if error.code != 409:
                raise
            pod = self._api.get(POD.path(self._namespace, name))
        told = secret(
            name, self._namespace, {**pod, "apiVersion": "v1", "kind": "Pod"}, environment
        )
        self._api.apply(SECRET.path(self._namespace, name), told, MANAGER)
        done = {"metadata": {"annotations": {TOLD: "true"}}}
        self._api.merge(POD.path(self._namespace, name), done, MANAGER)

    def delete(self, node: Node) -> None:
        """Begin to end the pod; the Secret goes with it."""
        gone(self._api, POD.path(self._namespace, node.id))

    def _pod(self, name: str, session: int) -> Manifest:
        machine = self._machine
        resources: Manifest = {}
        if machine.gpus:
            resources = {"limits": {machine.gpu_resource: str(machine.gpus)}}
        spec: Manifest = {
            # A session is over when its pod is: a second start would have no key.
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": int(self._grace_s),
            "securityContext": pod_context(machine.pod_security),
            "containers": [
                {
                    "name": "site",
                    "image": machine.image,
                    "command": ["uncurtail", "site", "join"],
                    "envFrom": [{"secretRef": {"name": name}}],
                    "resources": resources,
                    "securityContext": container_context(machine.pod_security),
                }
            ],
        }
        if machine.pod_security == "restricted":
            _give_room(spec)
        if machine.node_selector:
            spec["nodeSelector"] = dict(machine.node_selector)
        if machine.service_account:
            spec["serviceAccountName"] = machine.service_account
        labels = {
            "app.kubernetes.io/name": "uncurtail-site",
            "app.kubernetes.io/managed-by": MANAGER,
            RUN: self._run,
            SITE: self._site,
            SESSION: str(session),
        }
        meta = {"name": name, "namespace": self._namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _give_room(spec: Manifest) -> None:
    """All that a site writes is below its temporary folder and its user's home: one volume."""
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    for container in spec["containers"]:
        container["env"] = [{"name": "HOME", "value": "/tmp"}]
        container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
