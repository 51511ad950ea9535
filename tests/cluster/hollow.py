"""Nodes without processes: a pod runs and is ready at once, unless a test says otherwise."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.cluster.api import Api
from tests.cluster.controllers import pods
from tests.cluster.objects import Json, is_ending, timestamp, with_condition


def _always(pod: Json) -> bool:
    return True


@dataclass
class HollowNodes:
    """`is_ready` and `may_end` are asked about each pod, again and again."""

    is_ready: Callable[[Json], bool] = _always
    may_end: Callable[[Json], bool] = _always
    addresses: Iterator[str] = field(
        default_factory=lambda: (f"10.244.{n // 250}.{n % 250 + 2}" for n in itertools.count())
    )

    def step(self, api: Api) -> None:
        for pod in api.list("pods"):
            if not pod["spec"].get("nodeName"):
                continue
            if is_ending(pod):
                if self.may_end(pod):
                    api.finish(api.resource_of(pod), pod)
            elif not pods.has_ended(pod):
                self._run(api, pod)

    def _run(self, api: Api, pod: Json) -> None:
        before = pod.get("status") or {}
        is_ready = self.is_ready(pod)
        conditions = before.get("conditions") or []
        for kind in ("Initialized", "ContainersReady", "Ready"):
            is_met = is_ready or kind == "Initialized"
            conditions = with_condition(conditions, kind, is_met, "Hollow")
        started = before.get("startTime") or timestamp()
        ip = before.get("podIP") or next(self.addresses)
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "hostIP": "127.0.0.1",
            "startTime": started,
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": is_ready,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": started}},
                }
                for container in pod["spec"]["containers"]
            ],
        }
        pods.write_status(api, pod, status)
