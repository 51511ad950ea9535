"""What the tests' local HTTP servers share: a port of their own, and faults that get used up."""

import threading
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, TypeVar


class Fault(Protocol):
    times: int | None  # None: for ever


AnyFault = TypeVar("AnyFault", bound=Fault)


def take(faults: MutableSequence[AnyFault], hit: Callable[[AnyFault], bool]) -> AnyFault | None:
    """The first fault that hits, used up by one time."""
    for fault in faults:
        if hit(fault):
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    faults.remove(fault)
            return fault
    return None


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler], go_on: threading.Event, **known: Any
) -> Iterator[int]:
    """Serve on a port of loopback; each handler has `known`, and `go_on` ends answers that wait."""
    quiet = {"log_message": lambda *_: None, **known}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Quiet", (handler,), quiet))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
