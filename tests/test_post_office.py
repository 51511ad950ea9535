"""Orders through Flower, where Flower fails: none is lost, none takes another along."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.test_worker import order
from uncurtail.adapters.flower_server import PostOffice
from uncurtail.core.rounds import Order, Reply

ONLINE = {"duck.1": 11, "solar.1": 22}


class Node:
    """A SuperNode as Flower's grid lists it."""

    def __init__(self, name: str, node_id: int) -> None:
        self.name, self.node_id = name, node_id

    def HasField(self, name: str) -> bool:  # noqa: N802 - protobuf's name
        return name == "name"


class Grid:
    """Flower's grid: two nodes are online, and messages to `bad` raise `error`."""

    def __init__(self, bad: int, error: Exception) -> None:
        self.bad, self.error = bad, error
        self.pushed: list[int] = []

    def get_nodes(self) -> list[Node]:
        return [Node(name, identity) for name, identity in ONLINE.items()]

    def push_messages(self, messages):
        (message,) = messages
        self.pushed.append(message.metadata.dst_node_id)
        if message.metadata.dst_node_id == self.bad:
            raise self.error
        return [f"message-{len(self.pushed)}"]

    def pull_messages(self, _ids):
        return []


class Slow(Grid):
    """The reply to the first message never comes whole; all others are there at once."""

    def __init__(self) -> None:
        super().__init__(bad=0, error=OSError())
        self.asked: list[str] = []
        self.whole = threading.Event()

    def pull_messages(self, ids):
        (asked,) = ids
        self.asked.append(asked)
        if asked == "message-1":
            self.whole.wait(20.0)
        metadata = SimpleNamespace(reply_to_message_id=asked)
        error = SimpleNamespace(code=9, reason=f"of {asked}")
        return [SimpleNamespace(metadata=metadata, error=error, has_error=lambda: True)]


class Silent(Grid):
    """Nobody answers; remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(bad=0, error=OSError())
        self.asked: set[str] = set()

    def pull_messages(self, ids):
        self.asked.update(ids)
        return []


@pytest.fixture(autouse=True)
def app():
    """Messages name the Flower run that they are of, and that a ServerApp's process knows."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 2, 3


def post_to(grid: Grid, *orders: Order) -> PostOffice:
    """A post office that knows who is online and was given these orders."""
    post = PostOffice(grid)  # type: ignore[arg-type]  # all that it asks of Flower's
    until(lambda: post.online() == set(ONLINE))
    for each in orders:
        post.send(each)
    return post


def answers(post: PostOffice) -> list[Reply]:
    """The first that come."""
    found: list[Reply] = []

    def came() -> bool:
        found.extend(post.receive())
        return bool(found)

    until(came)
    return found


def until(holds) -> None:
    give_up = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize(
    "error", [OSError("refused"), RuntimeError("nobody thought of this")], ids=["known", "unknown"]
)
def test_an_order_that_cannot_be_sent_is_answered_and_takes_no_other_along(error):
    grid = Grid(bad=11, error=error)
    post = post_to(grid, order(site="duck"), order(site="solar"))
    replies = answers(post)
    assert [reply.site for reply in replies] == ["duck"]
    assert replies[0].error == f"not sent: {error}"
    until(lambda: 22 in grid.pushed)
    assert post.receive() == [], "the other is on its way"


def test_what_fails_is_told_until_a_call_succeeds_again():
    grid = Grid(bad=11, error=RuntimeError("nobody thought of this"))
    post = post_to(grid, order(site="duck"))
    until(lambda: post.trouble is not None)
    assert post.trouble == "Flower: RuntimeError: nobody thought of this"
    until(lambda: post.trouble is None)


def test_a_site_that_is_not_online_is_answered_at_once():
    post = post_to(Grid(bad=0, error=OSError()), order(site="windy"))
    replies = answers(post)
    assert (replies[0].site, replies[0].error) == ("windy", "not online")


def test_a_reply_that_does_not_come_whole_holds_up_no_other_and_is_asked_for_once():
    grid = Slow()
    post = post_to(grid, order(site="duck"))
    until(lambda: grid.asked)
    post.send(order(site="solar"))
    assert [reply.site for reply in answers(post)] == ["solar"]
    post.send(replace(order(site="solar"), round=9))
    assert [reply.round for reply in answers(post)] == [9]
    assert grid.asked.count("message-1") == 1
    grid.whole.set()
    assert [(reply.site, reply.error) for reply in answers(post)] == [
        ("duck", "Flower 9: of message-1")
    ]


def test_what_counts_no_more_is_asked_for_no_more():
    grid = Silent()
    first = replace(order(site="duck"), session=1, round=5)
    post = post_to(grid, *(replace(first, round=n) for n in (5, 6, 7, 8)))
    post.send(replace(order(site="solar"), session=1, round=1))
    current = {"message-2", "message-3", "message-4", "message-5"}
    until(lambda: grid.asked >= current)
    grid.asked.clear()
    until(lambda: grid.asked >= current)
    assert grid.asked == current


def test_a_reply_for_which_no_thread_can_be_started_is_fetched_when_one_can():
    grid = Slow()
    post = post_to(grid)
    before = threading.stack_size(2**46)  # more than the machine has: no thread starts
    try:
        post.send(order(site="duck"))
        post.send(order(site="solar"))
        until(lambda: post.trouble is not None)
        assert post.trouble == "Flower: RuntimeError: can't start new thread"
    finally:
        threading.stack_size(before)
    grid.whole.set()
    found = answers(post)
    while len(found) < 2:
        found += answers(post)
    assert {reply.site for reply in found} == {"duck", "solar"}
