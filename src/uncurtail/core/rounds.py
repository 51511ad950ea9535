"""Stage 5: from one model version to the next: open, join, collect, close; commit or skip.

A round is a value. Orders and answers may be lost, late, doubled or reordered: an answer counts
only for the open (run, epoch, round, base, lease), once, and everything else is rejected with a
reason. Times are simulated unless the name says `wall`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import Field

from uncurtail.core.commit import Accepted
from uncurtail.core.leases import Interval, count_steps
from uncurtail.core.section import Section


class RoundsSection(Section):
    """How long a round is, and how patient the coordinator is."""

    # By simulated time, so that a round in an accelerated run is as long for the grid as for real.
    length_s: float = Field(default=3600.0, gt=0)
    # ... or by inner steps of each site: H = 30-100 is where quality is best (MuLoCo, Streaming
    # DiLoCo). The lease of a site is never larger.
    max_steps: int = Field(default=100, ge=1)
    # After the deadline: finish a step, upload, come back through Flower (3-6 s measured).
    grace_wall_s: float = Field(default=20.0, gt=0)
    # A lost order or reply is asked for again this often; the trainer keeps its answer.
    attempts: int = Field(default=3, ge=1)
    # A session without a word for so many of its rounds in a row is released, and started anew: a
    # SuperNode whose SuperLink forgets a message while it is fetched asks for it for two hours.
    mute_rounds: int = Field(default=3, ge=1)
    # Validate the base model every so many commits; 0: only the first and the last.
    evaluate_every: int = Field(default=2, ge=0)


@dataclass(frozen=True, slots=True)
class Order:
    """What a site is asked to do: the train message, as JSON on the wire.

    `base` is the object key of model `base_version`. A stand-by order has none: it is sent while
    the round before still runs, hides Flower's latency, and begins when that model is announced.
    """

    run: str
    epoch: int
    round: int
    site: str
    session: int
    attempt: int
    base_version: int | None
    base: str | None
    intervals: tuple[Interval, ...]
    train_for_wall_s: float
    not_after_wall: float
    tokens_at_start: int
    sites: int
    evaluate: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `error` is set when the site, or Flower on its behalf, failed."""

    run: str
    epoch: int
    round: int
    site: str
    session: int
    attempt: int
    base_version: int | None
    steps: int = 0
    tokens: int = 0
    mean_loss: float | None = None
    token_sha256: str = ""
    update: str | None = None  # object key of the delta
    update_sha256: str = ""
    val_loss: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """An open round. Members are sessions: a site that comes back with a new one joins anew.

    `orders` are out; `answered` are the members that gave their one answer.
    """

    number: int
    base_version: int
    base: str
    deadline: float
    close_wall: float
    orders: Mapping[str, Order] = field(default_factory=dict)
    answered: frozenset[str] = frozenset()
    accepted: tuple[Reply, ...] = ()

    def waiting(self) -> frozenset[str]:
        """The members whose answer is still out."""
        return frozenset(self.orders) - self.answered

    def with_order(self, order: Order) -> "Round":
        """The round with this member's (newest) order out."""
        return replace(self, orders={**self.orders, member(order.site, order.session): order})

    def with_answer(self, reply: Reply, *, accepted: bool) -> "Round":
        """The round with this member's answer in."""
        return replace(
            self,
            answered=self.answered | {member(reply.site, reply.session)},
            accepted=(*self.accepted, reply) if accepted else self.accepted,
        )


def member(site: str, session: int) -> str:
    """A site's session, as Flower and the state plane name it."""
    return f"{site}.{session}"


def answers(reply: Reply, order: Order) -> bool:
    """Whether a site that gave this reply has carried this order out, and is to repeat it.

    An answer without steps stands for the very order alone: a site that dropped a stand-by order,
    or got one too late, trains when it is ordered to in the same round again.
    """
    if (reply.epoch, reply.round, reply.session) != (order.epoch, order.round, order.session):
        return False
    trained = reply.steps > 0 or reply.error is not None
    same = (reply.attempt, reply.base_version) == (order.attempt, order.base_version)
    return trained or same


def updates_folder(order: Order) -> str:
    """Where a session leaves its update and its answer for a round, in the store."""
    return f"updates/{order.run}/{order.round:06d}/{member(order.site, order.session)}"


def should_open(*, current: Round | None, able: Iterable[str], stopping: bool) -> bool:
    """Open a round as soon as one site can train and none is open."""
    return current is None and not stopping and any(True for _ in able)


def joiners(current: Round, able: Mapping[str, int], now: float) -> list[str]:
    """The sites that should get an order: able (site -> session), not asked yet, and in time.

    A site that comes back with a new session after it answered joins again: its earlier answer
    stands, and its new lease is disjoint.
    """
    if now >= current.deadline:
        return []
    return [site for site, session in able.items() if member(site, session) not in current.orders]


def judge(current: Round | None, reply: Reply, tokens_per_step: int) -> str | None:
    """Why this answer does not count, or None when it does.

    Nothing is judged about the tensors here: shape, finiteness and norm are the merge's to check.
    """
    if current is None or reply.round != current.number:
        return "late: the round is closed"
    name = member(reply.site, reply.session)
    order = current.orders.get(name)
    if order is None:
        return "unknown site or session"
    if (reply.run, reply.epoch) != (order.run, order.epoch):
        return "another run or epoch"
    if name in current.answered:
        return "doubled"
    if reply.error is not None:
        return reply.error
    if reply.steps == 0:
        return None  # it was stopped before its first step
    return _judge_claim(order, reply, tokens_per_step)


def _judge_claim(order: Order, reply: Reply, tokens_per_step: int) -> str | None:
    """Why what was trained is not a prefix of what was ordered, or None when it is."""
    if reply.base_version != order.base_version:
        return f"base {reply.base_version} is not {order.base_version}"
    if not 0 < reply.steps <= count_steps(order.intervals):
        return f"{reply.steps} steps are not within the lease"
    if reply.tokens != reply.steps * tokens_per_step:
        return f"{reply.tokens} tokens are not {reply.steps} steps"
    if reply.update is None or not reply.update_sha256:
        return "no update for the steps it claims"
    return None


def may_retry(rounds: RoundsSection, current: Round, reply: Reply, now_wall: float) -> bool:
    """Whether to ask a site again whose answer was lost on the way (its trainer keeps it)."""
    name = member(reply.site, reply.session)
    order = current.orders.get(name)
    return (
        order is not None
        and name not in current.answered
        and order.attempt < rounds.attempts
        and now_wall < current.close_wall
    )


def should_close(current: Round, *, now: float, now_wall: float, stopping: bool) -> bool:
    """Close when every order is answered and no more may come, or when patience ends.

    A round with all its answers closes early when its sites were stopped or used up their
    leases; otherwise late joiners may still come until the deadline, unless the run winds down.
    """
    if now_wall >= current.close_wall:
        return True
    ended = bool(current.orders) or now >= current.deadline or stopping
    return ended and not current.waiting()


def wants_evaluation(rounds: RoundsSection, *, version: int, evaluated: Iterable[int]) -> bool:
    """Whether the model `version` should be validated by the next order that goes out."""
    if version in set(evaluated):
        return False
    return version == 0 or (rounds.evaluate_every > 0 and version % rounds.evaluate_every == 0)


def counted(reply: Reply, consumed: tuple[Interval, ...]) -> Accepted:
    """What a commit keeps of an accepted answer, which consumed these steps of its lease."""
    return Accepted(
        site=reply.site,
        session=reply.session,
        intervals=consumed,
        steps=reply.steps,
        tokens=reply.tokens,
        token_sha256=reply.token_sha256,
        update_sha256=reply.update_sha256,
        mean_loss=reply.mean_loss,
    )
