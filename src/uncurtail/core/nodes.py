"""Machines elsewhere, wanted against observed: for each session, the one move that comes next.

Level-triggered: whatever call failed, hung or half-succeeded, the next look at what exists and the
next move repair it. A session gets a node only while none is there and none may still come from an
attempt whose answer was lost; a node that nobody wants is deleted until it is not seen any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import Field

from uncurtail.core.section import Section

Session = tuple[str, int]  # a site, and which start of it
FIRST_RETRY_S = 2.0


class RemoteSection(Section):
    """How machines elsewhere are asked for. All of it by the wall clock."""

    poll_wall_s: float = Field(default=5.0, gt=0)  # between two looks at what exists
    call_timeout_wall_s: float = Field(default=30.0, gt=0)  # a call without an answer has failed
    # A call without an answer may still come true for so long; until then there is no second one.
    settle_wall_s: float = Field(default=60.0, ge=0)
    max_retry_wall_s: float = Field(default=120.0, gt=0)
    # Deleting a machine takes a cloud minutes: the end of a run waits so long to see it done.
    release_wall_s: float = Field(default=600.0, gt=0)


class NodeState(StrEnum):
    """What a cloud says of a machine."""

    PARTIAL = "partial"  # half-made: creating it has to go on
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    LEAVING = "leaving"  # being deleted


class Wish(StrEnum):
    """What the loop last asked for a session. A session it never spoke of is left as it is."""

    UP = "up"
    GONE = "gone"  # for good: a session's number never comes back


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that exists, and the session that it was made for. `why`: the cloud's own words."""

    site: str
    session: int
    id: str
    state: NodeState
    why: str = ""

    @property
    def key(self) -> Session:
        """Whose it is."""
        return self.site, self.session


@dataclass(frozen=True, slots=True)
class Tried:
    """What was attempted for a session so far. Times are monotonic."""

    failures: int = 0
    create_at: float = float("-inf")  # not before
    delete_at: float = float("-inf")
    unsure_until: float = float("-inf")  # a node may still come from an attempt
    was_ready: bool = False


@dataclass(frozen=True, slots=True)
class Create:
    """Make the node of a session, or go on making it."""

    site: str
    session: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete this node."""

    node: Node


Move = Create | Delete


class Outcome(StrEnum):
    """How a call ended."""

    DONE = "done"
    REFUSED = "refused"  # and nothing happened
    UNSURE = "unsure"  # no answer: it may have happened


# Which of several nodes of a session stays.
_BEST_FIRST = (NodeState.READY, NodeState.STARTING, NodeState.PARTIAL, NodeState.FAILED)
_NEW = Tried()


def decide(
    observed: Sequence[Node],
    wishes: Mapping[Session, Wish],
    tried: Mapping[Session, Tried],
    now: float,
) -> list[Move]:
    """At most one move for each session, deletions first.

    Args:
        observed: Every node of this run that exists.
        wishes: What is wanted; a session that is not in it keeps its node, if that works.
        tried: What was attempted, as `noticed` and `after` left it.
        now: Monotonic.
    """
    found = [(key, _own(observed, key)) for key in sorted({*wishes, *(n.key for n in observed)})]
    deletions = [
        Delete(drop[0])
        for key, nodes in found
        if (drop := _surplus(nodes, wishes.get(key))) and now >= tried.get(key, _NEW).delete_at
    ]
    creations = [
        Create(*key)
        for key, nodes in found
        if wishes.get(key) is Wish.UP and _wants_making(key, nodes, observed, tried, now)
    ]
    return [*deletions, *creations]


def _own(observed: Sequence[Node], key: Session) -> list[Node]:
    own = [node for node in observed if node.key == key and node.state is not NodeState.LEAVING]
    return sorted(own, key=lambda node: (_BEST_FIRST.index(node.state), node.id))


def _surplus(nodes: Sequence[Node], wish: Wish | None) -> list[Node]:
    """Those that have to go: all, or what failed and what is one too many."""
    if wish is Wish.GONE:
        return list(nodes)
    return [n for n in nodes if n.state is NodeState.FAILED or n is not nodes[0]]


def _wants_making(
    key: Session,
    nodes: Sequence[Node],
    observed: Sequence[Node],
    tried: Mapping[Session, Tried],
    now: float,
) -> bool:
    known = tried.get(key, _NEW)
    if now < known.create_at or known.was_ready:
        # A session that lost its machine is over: its key may be locked out, a new one is not.
        return False
    if nodes:
        return len(nodes) == 1 and nodes[0].state is NodeState.PARTIAL
    # Another node of the site, on its way out or in: it may hold the GPU that this one needs.
    return now >= known.unsure_until and all(node.site != key[0] for node in observed)


def noticed(
    observed: Sequence[Node], tried: Mapping[Session, Tried], now: float
) -> dict[Session, Tried]:
    """What a look at what exists says about the attempts: one that is there came true."""
    known = dict(tried)
    for node in observed:
        before = known.get(node.key, _NEW)
        ready = node.state is NodeState.READY
        known[node.key] = replace(
            before,
            unsure_until=min(before.unsure_until, now),
            was_ready=before.was_ready or ready,
            failures=0 if ready else before.failures,
        )
    return known


def after(
    tried: Tried, move: Move, outcome: Outcome, settings: RemoteSection, now: float, jitter: float
) -> Tried:
    """What is known of a session once a call for it has ended, `now`.

    `jitter`, 0-1, spreads retries, so that many runs do not come back at once.
    """
    made_in_vain = isinstance(move, Delete) and move.node.state is NodeState.FAILED
    failures = tried.failures + (outcome is not Outcome.DONE or made_in_vain)
    pause_s = retry_s(failures, settings, jitter) if failures else 0.0
    match move:
        case Create():
            unsure_s = 0.0 if outcome is Outcome.REFUSED else settings.settle_wall_s
            return replace(
                tried,
                failures=failures,
                create_at=now + (pause_s if outcome is not Outcome.DONE else 0.0),
                unsure_until=max(tried.unsure_until, now + unsure_s),
            )
        case Delete():
            failed = outcome is not Outcome.DONE
            return replace(
                tried,
                failures=failures,
                create_at=max(tried.create_at, now + pause_s),
                delete_at=now + (pause_s if failed else settings.poll_wall_s),
            )


def retry_s(failures: int, settings: RemoteSection, jitter: float) -> float:
    """How long to wait after so many failures in a row: 50-100 % of a pause that doubles."""
    pause_s = min(settings.max_retry_wall_s, FIRST_RETRY_S * 2.0 ** min(failures - 1, 20))
    return pause_s * (1.0 - 0.5 * jitter)


def existing(
    observed: Sequence[Node],
    wishes: Mapping[Session, Wish],
    tried: Mapping[Session, Tried],
    looked_at: float,
) -> frozenset[Session]:
    """The sessions that exist, are being made, or may still turn up.

    A doubt ends with a look at what exists, at `looked_at`, and not with the passing of time.
    """
    there = {node.key for node in observed}
    coming = {
        key
        for key, wish in wishes.items()
        if wish is Wish.UP and not tried.get(key, _NEW).was_ready
    }
    unsure = {key for key, known in tried.items() if looked_at < known.unsure_until}
    return frozenset(there | coming | unsure)
