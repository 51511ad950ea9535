"""Services as connections see them: an address that stays, and a ready pod behind it."""

import asyncio
import contextlib
from dataclasses import dataclass, field

from tests.cluster.api import Api
from tests.cluster.objects import Json, dig

_Server = tuple[str, int]


@dataclass
class Proxy:
    """Listens at the address and port of each Service; TCP alone."""

    servers: dict[_Server, asyncio.Server] = field(default_factory=dict)
    turns: dict[_Server, int] = field(default_factory=dict)
    _starting: set[asyncio.Task[None]] = field(default_factory=set)

    def step(self, api: Api) -> None:
        wanted: dict[_Server, tuple[Json, Json]] = {}
        for service in api.list("services"):
            address = service["spec"].get("clusterIP")
            if address and address != "None":
                for port in service["spec"].get("ports") or []:
                    wanted[address, port["port"]] = (service, port)
        for where in self.servers.keys() - wanted.keys():
            self.servers.pop(where).close()
        for where, (service, port) in wanted.items():
            if where not in self.servers and where not in self.turns:
                self.turns[where] = 0
                task = asyncio.create_task(self._listen(api, where, service, port))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)

    async def _listen(self, api: Api, where: _Server, service: Json, port: Json) -> None:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            target = self._choose(where, api, namespace, name, port)
            with contextlib.suppress(ConnectionError, OSError):
                if target is not None:
                    await _join(reader, writer, *target)
            writer.transport.abort()

        self.servers[where] = await asyncio.start_server(serve, *where)

    def _choose(
        self, where: _Server, api: Api, namespace: str, name: str, port: Json
    ) -> tuple[str, int] | None:
        """The next ready pod; None where there is none, and the connection is refused."""
        ready = [
            (address["ip"], number["port"])
            for thing in api.list("endpoints", namespace)
            if thing["metadata"]["name"] == name
            for subset in thing.get("subsets") or []
            for address in subset.get("addresses") or []
            for number in subset.get("ports") or []
            if number.get("name") == port.get("name")
        ]
        if not ready:
            return None
        self.turns[where] += 1
        return ready[self.turns[where] % len(ready)]

    async def stop(self) -> None:
        for server in self.servers.values():
            server.close()


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    """Carry bytes both ways until both sides have ended."""
    other_reader, other_writer = await asyncio.open_connection(host, port)

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()

    try:
        await asyncio.gather(carry(reader, other_writer), carry(other_reader, writer))
    finally:
        other_writer.close()


def hosts(api: Api, pod: Json) -> str:
    """What `/etc/hosts` of a pod says: itself, all Services, and the pods behind headless ones."""
    own, lines = pod["metadata"]["namespace"], ["127.0.0.1 localhost"]
    if address := dig(pod, "status.podIP"):
        lines.append(f"{address} {pod['spec'].get('hostname') or pod['metadata']['name']}")
    for service in api.list("services"):
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        endings = [f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local"]
        endings += [""] if namespace == own else []
        address = service["spec"].get("clusterIP")
        if address and address != "None":
            lines.append(" ".join([address, *(f"{name}{ending}" for ending in endings)]))
        for entry in _behind(api, namespace, name):
            names = [f"{name}{e}" for e in endings] if address == "None" else []
            if "hostname" in entry:
                names += [f"{entry['hostname']}.{name}{ending}" for ending in endings]
            if names:
                lines.append(" ".join([entry["ip"], *names]))
    return "\n".join(lines) + "\n"


def _behind(api: Api, namespace: str, name: str) -> list[Json]:
    return [
        address
        for thing in api.list("endpoints", namespace)
        if thing["metadata"]["name"] == name
        for subset in thing.get("subsets") or []
        for address in subset.get("addresses") or []
    ]
