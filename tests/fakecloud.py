"""A cloud in memory with a clock of its own, whose calls can fail in every way that a network can.

A fault is used up by the next call of its kind. A `late` creation comes true after its answer was
lost, at any time within `settle_s`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from uncurtail.adapters.remote import CloudError, RemoteProvisioner
from uncurtail.core.nodes import Node, NodeState, RemoteSection

SETTLE_S = 60.0
SETTINGS = RemoteSection(settle_wall_s=SETTLE_S)
FAULTS = {
    "create": ["refused", "lost", "late", "vain", "bug"],
    "delete": ["refused", "lost", "vain", "slow", "bug"],
    "look": ["vain", "bug"],
}


@dataclass
class FakeCloud:
    name: str = "fake"
    now: float = 1000.0
    nodes: dict[str, Node] = field(default_factory=dict)
    coming: list[tuple[float, str, int]] = field(default_factory=list)
    leaving: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    late_s: float = 30.0
    retry_after_s: float | None = None
    made: int = 0
    most_of_a_site: int = 0  # at one time
    environments: list[Mapping[str, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for at, site, session in [*self.coming]:
            if at <= self.now:
                self.coming.remove((at, site, session))
                self.make(site, session)
        for name, at in [*self.leaving.items()]:
            if at <= self.now:
                del self.leaving[name]
                self.nodes.pop(name, None)

    def make(self, site: str, session: int, state: NodeState = NodeState.STARTING) -> str:
        self.made += 1
        name = f"node-{self.made}"
        self.nodes[name] = Node(site, session, name, state)
        of_the_site = [node for node in self.nodes.values() if node.site == site]
        self.most_of_a_site = max(self.most_of_a_site, len(of_the_site))
        return name

    def turn(self, name: str, state: NodeState, why: str = "") -> None:
        if self.nodes[name].state is not NodeState.LEAVING:
            self.nodes[name] = replace(self.nodes[name], state=state, why=why)

    # -- Cloud --

    def look(self) -> Sequence[Node]:
        self._fault("look")
        return [*self.nodes.values()]

    def create(self, site: str, session: int, environment: Mapping[str, str]) -> None:
        fault = self._fault("create", f"{site}.{session}")
        self.environments.append(environment)
        if fault == "late":
            self.coming.append((self.now + self.late_s, site, session))
        else:
            self.make(site, session)
        if fault in ("late", "lost"):
            raise CloudError("the answer was lost", unsure=True)

    def delete(self, node: Node) -> None:
        fault = self._fault("delete", node.id)
        if fault == "slow" and node.id in self.nodes:
            self.turn(node.id, NodeState.LEAVING)
            self.leaving[node.id] = self.now + 120.0
        else:
            self.nodes.pop(node.id, None)
        if fault == "lost":
            raise CloudError("the answer was lost", unsure=True)

    def _fault(self, call: str, what: str = "") -> str | None:
        self.calls.append(f"{call} {what}".strip())
        fault = self.faults.pop(call, None)
        if fault == "refused":
            raise CloudError("refused (403)", retry_after_s=self.retry_after_s)
        if fault == "vain":
            raise CloudError("no answer", unsure=True, retry_after_s=self.retry_after_s)
        if fault == "bug":
            raise ZeroDivisionError("a bug")
        return fault


def provisioner(cloud, sites=("oslo", "bern"), believed=(), settings=SETTINGS):
    """A provisioner on the cloud's own clock; its thread's work is done by `step`."""
    return RemoteProvisioner(
        cloud,
        sites,
        believed,
        settings,
        lambda site, session: {"UNCURTAIL_SITE": site, "UNCURTAIL_SESSION": str(session)},
        monotonic=cloud.time,
    )
