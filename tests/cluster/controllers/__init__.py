"""The controllers of the cluster: they write by the same rules as every client."""

from tests.cluster.cluster import Collecting, Part
from tests.cluster.controllers.daemonsets import DaemonSets
from tests.cluster.controllers.deployments import Deployments, ReplicaSets
from tests.cluster.controllers.nodes import Cordons, Scheduler
from tests.cluster.controllers.services import Budgets, Claims, EndpointLists
from tests.cluster.controllers.statefulsets import StatefulSets


def all_controllers() -> list[Part]:
    return [
        Collecting(),
        Cordons(),
        Claims(),
        Deployments(),
        ReplicaSets(),
        StatefulSets(),
        DaemonSets(),
        Scheduler(),
        EndpointLists(),
        Budgets(),
    ]
