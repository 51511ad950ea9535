"""Exalsius: machines of its node pool join a site's cluster and leave it. Extra: `exalsius`.

A machine is a node of the pool that the experiment names (`node_id`), or is made of an offer for
each session (`offer_id`): imported, which costs nothing yet, then added to the cluster. There are
no labels: a node of an offer carries its session in its hostname; a named one is the run's alone,
and is there for the last session that the run asked for.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uncurtail.adapters.http import retry_after_seconds
from uncurtail.adapters.remote import CloudError
from uncurtail.core.clouds import ExalsiusSite
from uncurtail.core.nodes import Node, NodeState
from uncurtail.errors import UserError

if TYPE_CHECKING:
    from exalsius_api_client import ApiClient

TOKEN = "UNCURTAIL_EXALSIUS_TOKEN"
CONNECT_S = 5.0

# What its states mean to us, of a node in a cluster and of one that is only in the pool.
_IN_CLUSTER = {"DEPLOYED": NodeState.READY, "FAILED": NodeState.FAILED}
_IN_POOL = {"AVAILABLE": NodeState.PARTIAL, "FAILED": NodeState.FAILED}


def check() -> None:
    """See to it, before the run starts, that this can work.

    Raises:
        UserError: The package is missing; one line with the remedy.
    """
    spec = importlib.util.find_spec("exalsius_api_client")
    if spec is None or spec.origin is None:
        raise UserError(
            "fleet.kind = exalsius needs the package exalsius-api-client: pip install "
            "'uncurtail[exalsius]'"
        )


def hostname(run_id: str, site: str, session: int) -> str:
    """What a session's node is called: a DNS label (63 letters), so a run is told by its hash."""
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:10]
    return f"uc-{digest}-{site}-{session}"


class Exalsius:
    """The `Cloud` of a run's Exalsius sites. Called by one thread."""

    name = "exalsius"

    def __init__(
        self,
        run_id: str,
        machines: Mapping[str, ExalsiusSite],
        sessions: Mapping[str, int],
        *,
        url: str,
        token: Callable[[], str],
        timeout_s: float,
    ) -> None:
        """Nothing is asked before the first call.

        Args:
            run_id: Whose nodes these are.
            machines: Each site's, with its cluster.
            sessions: The last session that the run asked for at each site; absent: none yet.
            url: Of the API.
            token: Read anew for each look: it may be renewed while a run goes on.
            timeout_s: For one answer.
        """
        self._run_id = run_id
        self._machines = machines
        self._sessions = dict(sessions)
        self._url = url
        self._token = token
        self._timeout = (min(CONNECT_S, timeout_s), timeout_s)
        self._client: ApiClient | None = None
        self._imported: dict[str, tuple[str, int]] = {}  # by node, should its hostname be another
        self._clusters: dict[str, str] = {}  # the cluster that a node is in, by the last look
        self._seen: Sequence[Node] = ()

    def look(self) -> Sequence[Node]:
        """Every node of this run: those in the clusters, and those that are only in the pool."""
        from exalsius_api_client import ClustersApi, NodesApi

        client = self._api()
        client.configuration.access_token = self._token()
        clusters: dict[str, str] = {}
        with self._asking():
            for cluster in sorted(
                {machine.cluster_id or "" for machine in self._machines.values()}
            ):
                members = ClustersApi(client).get_nodes(cluster, _request_timeout=self._timeout)
                ids = (*members.control_plane_node_ids, *members.worker_node_ids)
                clusters.update(dict.fromkeys(ids, cluster))
            pool = NodesApi(client).list_nodes(_request_timeout=self._timeout).nodes
        self._clusters = clusters
        found = (self._ours(node.actual_instance) for node in pool)
        self._seen = [node for node in found if node is not None]
        return self._seen

    def create(self, site: str, session: int, environment: Mapping[str, str]) -> None:
        """Import a node unless the pool has it, then add it to the site's cluster.

        Exalsius gives a node no environment: what runs in the cluster learns who it is from the
        node's name.
        """
        del environment
        machine = self._machines[site]
        if machine.node_id is not None:
            self._refuse_foreign(site, machine)
            self._sessions[site] = session
            self._add(machine, machine.node_id)
            return
        half_made = [n for n in self._seen if n.key == (site, session)]
        if half_made:
            self._add(machine, half_made[0].id)
        else:
            self._import(machine, site, session)

    def delete(self, node: Node) -> None:
        """Take it out of its cluster; then, one that was imported, out of the pool."""
        from exalsius_api_client import ClustersApi, NodesApi
        from exalsius_api_client.exceptions import NotFoundException

        client, cluster = self._api(), self._clusters.get(node.id)
        with self._asking():
            try:
                if cluster is not None:
                    ClustersApi(client).delete_node_from_cluster(
                        cluster, node.id, _request_timeout=self._timeout
                    )
                else:
                    NodesApi(client).delete_node(node.id, _request_timeout=self._timeout)
            except NotFoundException:
                return  # gone already

    def clusters(self) -> Sequence[str]:
        """The clusters that the token may see, each with its state."""
        from exalsius_api_client import ClustersApi

        client = self._api()
        client.configuration.access_token = self._token()
        with self._asking():
            found = ClustersApi(client).list_clusters(_request_timeout=self._timeout).clusters
        return [f"{cluster.name} ({cluster.cluster_status})" for cluster in found]

    def _ours(self, node: Any) -> Node | None:
        key = self._key(node)
        if key is None:
            return None
        states, otherwise = _IN_POOL, NodeState.STARTING
        if node.id in self._clusters:
            states = _IN_CLUSTER
        state = states.get(node.node_status, otherwise)
        ill = node.node_status in ("FAILED", "WARNING")
        why = f"{node.node_status}: {node.warning_message or 'no reason given'}" if ill else ""
        return Node(*key, node.id, state, " ".join(why.split())[:200])

    def _key(self, node: Any) -> tuple[str, int] | None:
        """The session that a node of the pool is there for; None where it is not ours."""
        for site, machine in self._machines.items():
            if machine.node_id == node.id:
                # In the pool alone it is as good as not there; before our first session it is in
                # the cluster for somebody else.
                session = self._sessions.get(site)
                return (site, session) if session and node.id in self._clusters else None
        if node.id in self._imported:
            return self._imported[node.id]
        host = node.hostname or ""
        site, _, number = host.removeprefix(self._prefix).rpartition("-")
        ours = host.startswith(self._prefix) and number.isdecimal()
        return (site, int(number)) if ours else None

    @property
    def _prefix(self) -> str:
        return hostname(self._run_id, "", 0).removesuffix("-0")

    def _refuse_foreign(self, site: str, machine: ExalsiusSite) -> None:
        if not self._sessions.get(site) and machine.node_id in self._clusters:
            raise CloudError(
                f"exalsius: node {machine.node_id} of {site} is in the cluster already, and not "
                "by this run: remove it there, or name another node"
            )

    def _add(self, machine: ExalsiusSite, node: str) -> None:
        from exalsius_api_client import ClusterAddNodeRequest, ClusterNodeToAdd, ClustersApi

        joining = ClusterNodeToAdd(node_id=node, node_role="WORKER")
        with self._asking():
            ClustersApi(self._api()).add_nodes(
                machine.cluster_id or "",
                ClusterAddNodeRequest(nodes_to_add=[joining]),
                _request_timeout=self._timeout,
            )

    def _import(self, machine: ExalsiusSite, site: str, session: int) -> None:
        from exalsius_api_client import NodesApi

        with self._asking():
            made = NodesApi(self._api()).import_node_from_offer(
                machine.offer_id or "",
                hostname=hostname(self._run_id, site, session),
                amount=1,
                _request_timeout=self._timeout,
            )
        self._imported.update(dict.fromkeys(made.node_ids, (site, session)))

    def _api(self) -> "ApiClient":
        from exalsius_api_client import ApiClient, Configuration

        if self._client is None:
            # Retries are ours: the client's own would sleep for as long as a server says.
            self._client = ApiClient(Configuration(host=self._url, retries=0))
        return self._client

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever the client raises into one line, and into whether it may have happened."""
        from exalsius_api_client.exceptions import ApiException
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

        where = urlsplit(self._url).netloc
        try:
            yield
        except ApiException as error:
            raise _refused(error) from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            unsent = isinstance(reason, ConnectTimeoutError | NewConnectionError)
            said = "cannot be reached" if unsent else "does not answer in time or breaks off"
            kind = type(reason).__name__
            raise CloudError(f"exalsius {said}: {where} ({kind})", unsure=not unsent) from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            what = " ".join(str(error).split())[:120]
            raise CloudError(
                f"exalsius answered in another form than documented ({what})", unsure=True
            ) from None


def _refused(error: Any) -> CloudError:
    """An answer other than 2xx, as a line; 5xx may have happened."""
    status: int = error.status
    pause_s = retry_after_seconds((error.headers or {}).get("Retry-After"))
    said = _said(error.body)
    if status == 0:
        return CloudError(f"exalsius: no sealed connection: {' '.join(str(error.reason).split())}")
    if status in (401, 403):
        line = f"exalsius refuses the token ({status}){said}: set {TOKEN} to one that is valid"
    elif status == 429:
        line = "exalsius asks for fewer requests (429)"
    elif status >= 500:
        line = f"exalsius fails ({status}){said}"
    else:
        line = f"exalsius refuses ({status}){said}"
    return CloudError(line, unsure=status >= 500, retry_after_s=pause_s)


def _said(body: str | None) -> str:
    """What the server says about it, in a few words: it documents 401 and 429 for no call."""
    try:
        detail = json.loads(body or "")["detail"]["detail"]
    except (ValueError, TypeError, LookupError):
        return ""
    return f": {' '.join(str(detail).split())[:160]}"
