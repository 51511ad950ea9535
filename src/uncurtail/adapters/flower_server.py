"""The ServerApp: the coordinator's process, and its post office to the sites.

`Grid` calls are blocking HTTP, so threads do them; the tick only reads and writes queues. To fetch
a reply may take minutes when its sender dies while it hands it in (182 s measured): each is asked
for by itself, so that it holds up no other.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from uncurtail import wire
from uncurtail.adapters import clock
from uncurtail.adapters.blobs import BlobError, Blobs
from uncurtail.core.rounds import Order, Reply, member, updates_folder

log = logging.getLogger("uncurtail.flower")

POLL_S = 0.1
# For each order that is out: however many there are, SuperLink is asked 20 times a second.
ASK_S = 0.05
NODES_EVERY_S = 0.5
# Longer than any round: Flower reports an expired order as an error while its site still trains.
# What is really lost, the round's end finds.
MESSAGE_TTL_S = 7 * 86400.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Coordinate the run whose folder UNCURTAIL_RUN_DIR names."""
    from uncurtail.coordinator import coordinate_named

    coordinate_named(PostOffice(grid))


def carrying(shim: str, experiment: str, settings: Sequence[str]) -> ServerApp:
    """A ServerApp that brings its experiment along: `flwr run` starts, or resumes, a whole run.

    Args:
        shim: The module that calls this, a file.
        experiment: The name of the TOML file beside it.
        settings: What overrides keys of it, as `--set` does; the run config `set` comes on top.
    """
    carrier = ServerApp()

    @carrier.main()
    def main(grid: Grid, context: Context) -> None:
        from uncurtail.hosting import Request, host

        path = Path(shim).with_name(experiment)
        host(PostOffice(grid), Request.of(path, settings, context.run_config))

    return carrier


class PostOffice:
    """Orders out, replies in, and who is online; never blocks its caller.

    What Flower reports as failed comes back as a Reply with `error`. A call that fails is tried
    again; meanwhile `trouble` says what is wrong.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._out: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._waiting: dict[str, Order] = {}  # by the message that carries it
        self._asking: set[str] = set()
        self._nodes: dict[str, int] = {}
        self.trouble: str | None = None
        self.blobs: Blobs | None = None  # where sites leave their answers; set before use
        self._thread = threading.Thread(target=self._work, name="post-office", daemon=True)
        self._thread.start()

    def send(self, order: Order) -> None:
        """Queue an order."""
        self._out.put(order)

    def receive(self) -> list[Reply]:
        """Everything that came since the last call."""
        return _drain(self._in)

    def recall(self, order: Order) -> Reply | None:
        """The answer that the site left in the store, if it did."""
        try:
            assert self.blobs is not None
            data = self.blobs.get(f"{updates_folder(order)}/reply.json")
            return wire.decode_reply(data.decode())
        except (BlobError, ValueError):
            return None

    def online(self) -> frozenset[str]:
        """The members (SITE.SESSION) whose SuperNode Flower has seen, by their proven names."""
        return frozenset(self._nodes)

    def _work(self) -> None:
        nodes_at = ask_at = 0.0
        while True:
            if clock.monotonic() >= nodes_at:
                self._attempt(self._look_around)
                nodes_at = clock.monotonic() + NODES_EVERY_S
            for order in _drain(self._out):  # one that fails takes no other with it
                self._attempt(partial(self._push, order))
            if clock.monotonic() >= ask_at:
                self._ask()
                ask_at = clock.monotonic() + ASK_S * len(self._waiting)
            clock.pause(POLL_S)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (httpx.HTTPError, OSError) as error:
            self._fails(error)
        # What else Flower's client may raise must show up as trouble, not as a dead thread.
        except Exception as error:
            log.exception("unexpected")
            self._fails(error)
        else:
            self.trouble = None

    def _fails(self, error: Exception) -> None:
        self.trouble = f"Flower: {type(error).__name__}: {error}"
        log.warning("%s", self.trouble)
        clock.pause(0.5)

    def _look_around(self) -> None:
        self._nodes = {
            node.name: node.node_id for node in self._grid.get_nodes() if node.HasField("name")
        }

    def _push(self, order: Order) -> None:
        node = self._nodes.get(member(order.site, order.session))
        if node is None:
            self._in.put(wire.answer(order, error="not online"))
            return
        try:
            content = RecordDict({"order": ConfigRecord({"json": wire.encode(order)})})
            message = Message(content, node, "train", ttl=MESSAGE_TTL_S, group_id=str(order.round))
            identity = next(iter(self._grid.push_messages([message])), None)
        except Exception as error:
            self._in.put(wire.answer(order, error=f"not sent: {error}"))
            raise
        if not identity:
            self._in.put(wire.answer(order, error="Flower did not take the order"))
            return
        self._waiting[identity] = order
        for old, sent in list(self._waiting.items()):
            if sent.site == order.site and _is_over(sent, order):
                self._waiting.pop(old, None)  # unless its reply has just come

    def _ask(self) -> None:
        for identity in self._waiting.keys() - self._asking:
            self._asking.add(identity)
            pull = partial(self._pull, identity)
            try:
                threading.Thread(target=pull, name=identity, daemon=True).start()
            except RuntimeError as error:  # the process may have no more threads: asked for later
                self._asking.discard(identity)
                self._fails(error)
                return

    def _pull(self, identity: str) -> None:
        self._attempt(partial(self._fetch, identity))
        self._asking.discard(identity)

    def _fetch(self, identity: str) -> None:
        for message in self._grid.pull_messages([identity]):
            order = self._waiting.pop(identity, None)
            if order is not None:
                self._in.put(_reply(order, message))


def _is_over(sent: Order, order: Order) -> bool:
    """Whether what a site was sent before counts no more once it is sent this.

    Two rounds may be out, and beyond them the last evaluation.
    """
    return (sent.session, sent.round) < (order.session, order.round - 2)


def _reply(order: Order, message: Message) -> Reply:
    if message.has_error():
        return wire.answer(order, error=f"Flower {message.error.code}: {message.error.reason}")
    try:
        return wire.decode_reply(str(message.content.config_records["reply"]["json"]))
    except (KeyError, ValueError) as error:
        return wire.answer(order, error=f"unreadable reply: {error}")


T = TypeVar("T")


def _drain(source: "queue.SimpleQueue[T]") -> list[T]:
    items: list[T] = []
    while True:
        try:
            items.append(source.get_nowait())
        except queue.Empty:
            return items
