"""Probes of containers: commands, TCP, HTTP and gRPC health."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import grpc

from tests.cluster.objects import Json


class Probed(Protocol):
    """What a probe asks: a container, at the address of its pod."""

    spec: Json
    address: str

    async def execute(self, words: list[str], timeout_s: float) -> int | None:
        """Run a command in the container; its exit code."""
        ...


def _port(number: int | str, container: Json) -> int:
    if isinstance(number, int):
        return number
    ports = container.get("ports") or []
    return int(next(port["containerPort"] for port in ports if port.get("name") == number))


async def is_met(probe: Json, asked: Probed) -> bool:
    """Ask once."""
    timeout_s = float(probe["timeoutSeconds"])
    if "exec" in probe:
        return await asked.execute(probe["exec"]["command"], timeout_s) == 0
    try:
        async with asyncio.timeout(timeout_s):
            if "httpGet" in probe:
                return await _http(probe["httpGet"], asked)
            if "grpc" in probe:
                return await asyncio.to_thread(_grpc, probe["grpc"], asked.address, timeout_s)
            port = _port(probe["tcpSocket"]["port"], asked.spec)
            _, writer = await asyncio.open_connection(asked.address, port)
            writer.close()
    except (OSError, TimeoutError):
        return False
    return True


async def _http(wish: Json, asked: Probed) -> bool:
    port = _port(wish["port"], asked.spec)
    reader, writer = await asyncio.open_connection(asked.address, port)
    host = f"Host: {asked.address}\r\nConnection: close\r\n\r\n"
    writer.write(f"GET {wish['path']} HTTP/1.1\r\n{host}".encode())
    words = (await reader.readline()).split()
    writer.close()
    return len(words) > 1 and words[1].isdigit() and 200 <= int(words[1]) < 400


def _grpc(wish: Json, address: str, timeout_s: float) -> bool:
    """Ask grpc.health.v1.Health; its messages are small enough to be written by hand."""
    service = wish["service"].encode()
    request = b"\x0a" + bytes([len(service)]) + service if service else b""
    with grpc.insecure_channel(f"{address}:{wish['port']}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = check(request, timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer == b"\x08\x01")


async def until_met(probe: Json, asked: Probed) -> bool:
    """Ask until it is met, or has failed too often."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    for _ in range(probe["failureThreshold"]):
        if await is_met(probe, asked):
            return True
        await asyncio.sleep(float(probe["periodSeconds"]))
    return False


async def follow(probe: Json, asked: Probed, tell: Callable[[bool], None]) -> None:
    """Ask for ever; tell when it was met, or has failed, often enough in a row."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    last, row = None, 0
    while True:
        met = await is_met(probe, asked)
        row = row + 1 if met == last else 1
        last = met
        if row >= probe["successThreshold" if met else "failureThreshold"]:
            tell(met)
        await asyncio.sleep(float(probe["periodSeconds"]))
