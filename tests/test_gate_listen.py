"""The gate's socket with real TLS and a real client: who says nothing does not stay."""

import asyncio
import socket
import ssl
import threading

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from uncurtail.adapters import certificates, clock
from uncurtail.adapters.gate_listen import server
from uncurtail.adapters.redis_server import free_port


async def slowly(_: Request) -> PlainTextResponse:
    await asyncio.sleep(0.6)
    return PlainTextResponse("at last")


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """Address and authority of a server that waits 0.2 s for a request to begin."""
    tls = tmp_path_factory.mktemp("tls")
    certificates.write_server_certificates(tls)
    port = free_port()
    app = Starlette(routes=[Route("/slow", slowly)])
    running = server(app, tls, "127.0.0.1", port, timeout_keep_alive=0.2)
    thread = threading.Thread(target=running.run)
    thread.start()
    give_up = clock.monotonic() + 30.0
    while not running.started and clock.monotonic() < give_up:
        clock.pause(0.02)
    yield port, tls / "ca.crt"
    running.should_exit = True
    thread.join(10)


def connect(gate, **limits: ssl.TLSVersion) -> ssl.SSLSocket:
    port, authority = gate
    context = ssl.create_default_context(cafile=authority)
    for name, version in limits.items():
        setattr(context, name, version)
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("said", [b"", b"GET /slow HT", b"GET /slow HTTP/1.1\r\nhost: x\r\n"])
def test_a_connection_on_which_no_request_begins_is_ended(gate, said):
    with connect(gate) as connection:
        connection.sendall(said)
        assert connection.recv(100) == b""


def test_a_request_that_takes_longer_is_answered(gate):
    port, authority = gate
    context = ssl.create_default_context(cafile=authority)
    with httpx.Client(verify=context) as client:
        assert client.get(f"https://127.0.0.1:{port}/slow").text == "at last"


def test_older_tls_is_not_spoken(gate):
    with connect(gate) as connection:
        assert connection.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError):
        connect(gate, maximum_version=ssl.TLSVersion.TLSv1_2)
