"""Static sites: machines that somebody else starts, and that follow what the run wants of them.

They are told through the state plane, and known by what they do: a fresh heartbeat, or a SuperNode
that is online. Nothing here reaches out to a machine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from uncurtail.adapters.remote import CloudError
from uncurtail.core.nodes import Node, NodeState, RemoteSection
from uncurtail.core.orders import Wanted

# A look costs one round trip to our own Redis, and what was written there is there at once.
SETTINGS = RemoteSection(poll_wall_s=1.0, settle_wall_s=0.0, max_retry_wall_s=5.0)


class Machines(Protocol):
    """The state plane, as far as machines are concerned."""

    def exchange(self, wanted: Mapping[str, Wanted]) -> dict[str, int] | None:
        """Write what is wanted; each site's session that lives. None while out of reach."""
        ...


class StaticSites:
    """A `Cloud` whose machines are only asked."""

    name = "static"

    def __init__(
        self, machines: Machines, sites: Sequence[str], online: Callable[[], frozenset[str]]
    ) -> None:
        """`online` are the members that Flower can reach."""
        self._machines = machines
        self._sites = frozenset(sites)
        self._online = online
        self._wanted: dict[str, Wanted] = {}

    def look(self) -> Sequence[Node]:
        """Who has a fresh heartbeat, or is online at Flower."""
        found = {*self._exchange().items(), *self._members()}
        for site, session in found:  # of an earlier coordinator: kept until somebody says otherwise
            self._wanted.setdefault(site, Wanted(session, up=True))
        return [
            Node(site, session, f"{site}.{session}", NodeState.READY)
            for site, session in sorted(found)
        ]

    def create(self, site: str, session: int, environment: Mapping[str, str]) -> None:
        """Say that this session is wanted; its machine has an environment of its own."""
        del environment
        self._wanted[site] = Wanted(session, up=True)
        self._exchange()

    def delete(self, node: Node) -> None:
        """Say that this session is not wanted any more."""
        wanted = self._wanted.get(node.site)
        if wanted is None or wanted.session <= node.session:
            self._wanted[node.site] = Wanted(node.session, up=False)
        self._exchange()

    def _exchange(self) -> dict[str, int]:
        living = self._machines.exchange(self._wanted)
        if living is None:
            raise CloudError("static sites cannot be told: the state server is out of reach")
        return living

    def _members(self) -> list[tuple[str, int]]:
        members = (name.rpartition(".") for name in self._online())
        return [
            (site, int(session))
            for site, _, session in members
            if site in self._sites and session.isdecimal()
        ]
