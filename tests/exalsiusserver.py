"""A local server that speaks the Exalsius API, built from the models of its official client.

What is sent is parsed and what is answered is made by those models, so both are of the documented
form; what it does is what their documentation says. A node moves on by one state with each look at
the pool. Faults are scripted: each is used up by the requests it hits.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import exalsius_api_client as models

from tests.scripted import listening, take

TOKEN = "a-secret-token"


@dataclass
class Fault:
    """`kind`: a status; slow (no answer); lost (done, but no answer); not-json; nonsense."""

    kind: str
    where: str = ""  # in "METHOD /path"
    times: int | None = 1  # None: for ever
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Machine:
    id: str
    hostname: str
    status: str = "AVAILABLE"
    cluster: str | None = None
    leaving: int | None = None  # looks until it has left its cluster
    looks: int = 0
    why: str | None = None

    def model(self) -> models.NodeResponse:
        node = models.CloudNode(
            id=self.id,
            node_type="CLOUD",
            hostname=self.hostname,
            price_per_hour=12.5,
            node_status=self.status,
            warning_message=self.why,
            provider="OVHCLOUD",
            region="no-oslo",
            instance_type="h100-4",
        )
        return models.NodeResponse(actual_instance=node)


@dataclass
class ExalsiusServer:
    url: str = ""
    token: str = TOKEN
    clusters: tuple[str, ...] = ("north",)
    offers: tuple[str, ...] = ("h100-4-oslo",)
    deploy_looks: int = 1  # from ADDED to DEPLOYED
    leave_looks: int = 1
    broken: str | None = None  # what the next node that is added fails with
    nodes: dict[str, Machine] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    added: int = 0
    go_on: threading.Event = field(default_factory=threading.Event)  # ends a slow answer

    def pool(self, *ids: str) -> None:
        """Nodes of the account, as if imported by a person."""
        for name in ids:
            self.nodes[name] = Machine(name, f"host-{name}")

    def members(self) -> list[str]:
        """Nodes in any cluster: those that cost something."""
        return [node.id for node in self.nodes.values() if node.cluster]

    def asked(self, what: str) -> int:
        return sum(what in request for request in self.requests)

    def take_fault(self, request: str) -> Fault | None:
        return take(self.faults, lambda fault: fault.where in request)

    def answer(self, method: str, path: str, query: dict[str, str], body: str) -> tuple[int, Any]:
        if (method, path) == ("GET", "/nodes"):
            self._time_passes()
            found = [node.model() for node in self.nodes.values()]
            return 200, models.NodesListResponse(nodes=found, total=len(found))
        if (method, path) == ("GET", "/clusters"):
            return 200, models.ClustersListResponse.from_dict(
                {"clusters": [_cluster(name) for name in self.clusters], "total": 1}
            )
        if match := re.fullmatch(r"/cluster/([^/]+)/nodes(?:/([^/]+))?", path):
            cluster, node = match.groups()
            if cluster not in self.clusters:
                return 404, _error(404, f"no cluster {cluster}")
            return self._of_cluster(method, cluster, node, body)
        if match := re.fullmatch(r"/node/import/offer/([^/]+)", path):
            return self._import(match[1], query)
        if method == "DELETE" and (match := re.fullmatch(r"/node/([^/]+)", path)):
            return self._drop(match[1])
        raise AssertionError(f"the client's documentation has no {method} {path}")

    def _of_cluster(self, method, cluster, node, body) -> tuple[int, Any]:
        if method == "POST":
            asked = models.ClusterAddNodeRequest.from_json(body)
            assert asked is not None
            for joining in asked.nodes_to_add:
                machine = self.nodes.get(joining.node_id)
                if machine is None:
                    return 404, _error(404, f"no node {joining.node_id}")
                if machine.status != "AVAILABLE":
                    return 409, _error(409, f"node {machine.id} is {machine.status}")
                assert joining.node_role == "WORKER"
                machine.status, machine.cluster, machine.looks = "ADDED", cluster, 0
                machine.why, self.broken = self.broken, None
                self.added += 1
            return 201, self._members(cluster)
        if method == "DELETE":
            machine = self.nodes.get(node)
            if machine is None or machine.cluster != cluster:
                return 404, _error(404, f"no node {node} in {cluster}")
            if machine.leaving is not None:
                return 409, _error(409, f"node {node} is being removed")
            machine.leaving = self.leave_looks
            return 202, models.ClusterNodeRemoveResponse(node_id=node)
        return 200, self._members(cluster)

    def _members(self, cluster):
        ids = [node.id for node in self.nodes.values() if node.cluster == cluster]
        return models.ClusterNodesResponse(
            cluster_id=cluster, control_plane_node_ids=["control"], worker_node_ids=ids
        )

    def _import(self, offer, query) -> tuple[int, Any]:
        if offer not in self.offers:
            return 404, _error(404, f"no offer {offer}")
        assert query["amount"] == "1"
        name = f"cloud-{len(self.nodes)}"
        self.nodes[name] = Machine(name, query["hostname"], "PENDING")
        return 201, models.NodeImportResponse(node_ids=[name], total=1)

    def _drop(self, name) -> tuple[int, Any]:
        machine = self.nodes.get(name)
        if machine is None:
            return 404, _error(404, f"no node {name}")
        if machine.status != "AVAILABLE":
            return 409, _error(409, f"node {name} is {machine.status}")
        del self.nodes[name]
        return 200, models.NodeDeleteResponse(node_id=name)

    def _time_passes(self):
        for node in self.nodes.values():
            node.looks += 1
            if node.leaving is not None:
                node.leaving -= 1
                if node.leaving <= 0:
                    node.status, node.cluster, node.leaving, node.why = (
                        "AVAILABLE",
                        None,
                        None,
                        None,
                    )
            elif node.status == "PENDING":
                node.status = "AVAILABLE"
            elif node.status == "ADDED" and node.looks > self.deploy_looks:
                node.status = "FAILED" if node.why else "DEPLOYED"


def _error(status: int, detail: str) -> models.Error:
    said = models.ErrorDetail(
        type="about:blank", title="refused", status=status, detail=detail, instance="/"
    )
    return models.Error(detail=said)


def _cluster(name: str) -> dict[str, Any]:
    return {"name": name, "cluster_status": "READY", "created_at": "2026-01-01T00:00:00+00:00"}


@contextmanager
def serving(**options: Any) -> Iterator[ExalsiusServer]:
    exalsius = ExalsiusServer(**options)

    with listening(_Handler, exalsius.go_on, exalsius=exalsius) as port:
        exalsius.url = f"http://127.0.0.1:{port}/v1"
        yield exalsius


class _Handler(BaseHTTPRequestHandler):
    exalsius: ExalsiusServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        assert parts.path.startswith("/v1/")
        path = parts.path.removeprefix("/v1")
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.exalsius.requests.append(f"{self.command} {path}")
        fault = self.exalsius.take_fault(f"{self.command} {path}")
        kind = fault.kind if fault else ""
        if kind.isdigit():
            headers = fault.headers if fault else {}
            self._send(int(kind), _error(int(kind), "scripted").to_json(), headers)
            return
        if kind == "slow":
            self.exalsius.go_on.wait(30)
            self.close_connection = True
            return
        if self.headers.get("Authorization") != f"Bearer {self.exalsius.token}":
            self._send(401, _error(401, "token expired").to_json(), {})
            return
        status, answer = self.exalsius.answer(self.command, path, query, body)
        if kind == "lost":
            self.close_connection = True
            return
        text = {"not-json": "<html>maintenance</html>", "nonsense": json.dumps({"nodes": 7})}
        self._send(status, text.get(kind) or json.dumps(answer.to_dict(), default=str), {})

    do_POST = do_DELETE = do_GET  # noqa: N815  (named by http.server)

    def _send(self, status: int, text: str, headers: dict[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
