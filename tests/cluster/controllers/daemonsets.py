"""DaemonSets: one pod on each node that suits, cordoned ones included."""

from tests.cluster.api import Api
from tests.cluster.controllers import pods
from tests.cluster.controllers.nodes import CORDONED, is_tolerated, suits
from tests.cluster.objects import Json, is_ending


class DaemonSets:
    """Makes, moves and replaces the pods of all DaemonSets."""

    def step(self, api: Api) -> None:
        for thing in api.list("daemonsets"):
            if not is_ending(thing):
                _reconcile(api, thing)


def _reconcile(api: Api, thing: Json) -> None:
    spec = thing["spec"]
    template, revision = spec["template"], pods.revision_of(spec["template"])
    nodes = {
        node["metadata"]["name"]
        for node in api.list("nodes")
        if suits(template["spec"], node) and is_tolerated(template["spec"], node, CORDONED)
    }
    mine = {pod["spec"].get("nodeName"): pod for pod in pods.owned_by(api, thing)}
    for name in sorted(nodes - mine.keys()):
        prefix = f"{thing['metadata']['name']}-"
        labels = {pods.REVISION: revision}
        pod = pods.from_template(thing, template, generateName=prefix, labels=labels)
        # A real one is bound by the scheduler, by an affinity to this very node.
        pod["spec"]["nodeName"] = name
        pods.create(api, thing, pod)
    for name, pod in mine.items():
        if (name not in nodes or pods.has_ended(pod)) and not is_ending(pod):
            pods.delete(api, pod)
    if nodes <= mine.keys() and spec["updateStrategy"]["type"] == "RollingUpdate":
        _roll(api, [mine[name] for name in sorted(nodes)], spec, revision)
    _write_status(api, thing, nodes, revision)


def _roll(api: Api, mine: list[Json], spec: Json, revision: str) -> None:
    """Replace old pods, as many at a time as may be unavailable."""
    most = pods.count_of(
        spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"], len(mine), rounds_up=True
    )
    left = most - sum(not pods.is_up(pod) for pod in mine)
    for pod in mine:
        if pods.is_of(pod, revision) or is_ending(pod):
            continue
        if not pods.is_up(pod):
            pods.delete(api, pod)
        elif left > 0:
            pods.delete(api, pod)
            left -= 1


def _write_status(api: Api, thing: Json, nodes: set[str], revision: str) -> None:
    here = [p for p in pods.owned_by(api, thing) if p["spec"].get("nodeName") in nodes]
    ready = sum(pods.is_up(pod) for pod in here)
    scheduled = len({pod["spec"]["nodeName"] for pod in here})
    status = {
        "observedGeneration": thing["metadata"]["generation"],
        "desiredNumberScheduled": len(nodes),
        "currentNumberScheduled": scheduled,
        "updatedNumberScheduled": sum(pods.is_of(pod, revision) for pod in here),
        "numberMisscheduled": len(pods.owned_by(api, thing)) - len(here),
        "numberReady": ready,
        "numberAvailable": ready,
        "numberUnavailable": len(nodes) - ready,
    }
    pods.write_status(api, thing, status)
