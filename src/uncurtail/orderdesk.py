"""Writes orders: hands out leases and takes them back, and says who validates which model.

A step is free, on lease in exactly one order, or consumed: `free` and the orders that are out
(a round's, and the stand-by ones kept here) never overlap.
"""

import math
from dataclasses import dataclass, replace

from uncurtail.core import rounds
from uncurtail.core.commit import Commit
from uncurtail.core.leases import FreeSteps, Interval, count_steps
from uncurtail.core.rounds import Order, Reply, Round, RoundsSection, member


@dataclass(frozen=True, slots=True)
class Terms:
    """What does not change during a run."""

    run: str
    epoch: int
    speed: float
    tokens_per_step: int
    budget_tokens: int
    rounds: RoundsSection


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by both clocks (unix seconds)."""

    t: float
    wall_s: float


class OrderDesk:
    """Leases, stand-by orders and evaluations of one coordinator."""

    def __init__(self, terms: Terms, head: Commit, evaluated: set[int]) -> None:
        self.free: FreeSteps = head.free
        self.evaluated = evaluated
        self.final: Order | None = None  # the last evaluation, while it is out
        self._terms = terms
        self._evaluating: dict[tuple[str, int], int] = {}  # by member and round
        self._standby: dict[str, Order] = {}
        self._in_doubt: set[str] = set()  # whose stand-by order Flower says it lost
        self._silent: dict[str, int] = {}  # rounds in a row without a word, by member

    def on_standby(self, name: str) -> bool:
        """Whether this member holds a stand-by order."""
        return name in self._standby

    def evaluates_last(self, name: str) -> bool:
        """Whether this member is validating the last model."""
        return self.final is not None and name == member(self.final.site, self.final.session)

    def order(self, current: Round, head: Commit, who: tuple[str, int, int], now: Moment) -> Order:
        """A blank order for (site, session) of `sites` in the open round, without a lease."""
        left_wall_s = max(0.0, (current.deadline - now.t) / self._terms.speed)
        site, session, sites = who
        return Order(
            run=self._terms.run,
            epoch=self._terms.epoch,
            round=current.number,
            site=site,
            session=session,
            attempt=1,
            base_version=current.base_version,
            base=current.base,
            intervals=(),
            train_for_wall_s=left_wall_s,
            not_after_wall=now.wall_s + left_wall_s,
            tokens_at_start=head.tokens,
            sites=sites,
            evaluate=False,
        )

    def lease(self, blank: Order, current: Round, head: Commit, version: int) -> Order | None:
        """The order with a lease of its own, or None when the budget is spoken for.

        `version` is the model that it will start from; it is validated on the way if it is due.
        """
        terms = self._terms
        out = [*current.orders.values(), *self._standby.values()]
        spoken_for = sum(count_steps(order.intervals) for order in out)
        left = terms.budget_tokens - head.tokens - spoken_for * terms.tokens_per_step
        wanted = min(terms.rounds.max_steps, math.ceil(left / terms.tokens_per_step))
        if wanted < 1:
            return None
        intervals, self.free = self.free.take(wanted)
        done = self.evaluated | set(self._evaluating.values())
        evaluate = rounds.wants_evaluation(terms.rounds, version=version, evaluated=done)
        if evaluate:
            self._evaluating[member(blank.site, blank.session), blank.round] = version
        return replace(blank, intervals=intervals, evaluate=evaluate)

    def stand_by(self, blank: Order, current: Round, head: Commit) -> Order | None:
        """An order for the round after the open one, to be completed when that opens."""
        coming = replace(blank, round=current.number + 1, base_version=None, base=None)
        order = self.lease(coming, current, head, head.version + 1)
        if order is not None:
            self._standby[member(order.site, order.session)] = order
        return order

    def renewed(self, order: Order, current: Round, head: Commit, now: Moment) -> Order:
        """The same lease once more in the open round, for the time that is left of it."""
        blank = self.order(current, head, (order.site, order.session, order.sites), now)
        return replace(
            blank,
            attempt=order.attempt + 1,
            intervals=order.intervals,
            evaluate=order.evaluate,
        )

    def last_evaluation(
        self, head: Commit, who: tuple[str, int], label: tuple[int, int], not_after: float
    ) -> Order:
        """An order without steps: validate the newest model. `label`: (round, attempt)."""
        site, session = who
        round_number, attempt = label
        self.final = Order(
            run=self._terms.run,
            epoch=self._terms.epoch,
            round=round_number,
            site=site,
            session=session,
            attempt=attempt,
            base_version=head.version,
            base=head.model,
            intervals=(),
            train_for_wall_s=0.0,
            not_after_wall=not_after,
            tokens_at_start=head.tokens,
            sites=1,
            evaluate=True,
        )
        return self.final

    def ended_early(self, reply: Reply) -> bool:
        """Whether this answers a stand-by order, or the last evaluation; it is off the desk then.

        A stand-by order is answered before its round when its site is not wanted any more. One
        that Flower lost may have arrived all the same and be carried out: it keeps its lease, and
        its site is asked for the same again when it joins that round.
        """
        name = member(reply.site, reply.session)
        waiting = self._standby.get(name)
        if waiting is not None and (reply.epoch, reply.round) == (waiting.epoch, waiting.round):
            if reply.error is None and not reply.steps:
                self._drop_standby(name)
            else:
                self._in_doubt.add(name)
            return True
        final = self.final if self.evaluates_last(name) else None
        if final is not None and (reply.epoch, reply.round) == (final.epoch, final.round):
            self.final = None
            return True
        return False

    def start_standby(self, round_number: int) -> list[Order]:
        """The stand-by orders, off the desk: their round opens now.

        One whose arrival is in doubt waits until its site joins this round, and no longer: in a
        later round a trainer drops it.
        """
        for name in [*self._in_doubt]:
            if self._standby[name].round < round_number:
                self._drop_standby(name)
        sure = [name for name in self._standby if name not in self._in_doubt]
        return [self._standby.pop(name) for name in sure]

    def take_doubtful(self, name: str) -> Order | None:
        """This member's stand-by order if its arrival is in doubt, off the desk."""
        if name not in self._in_doubt:
            return None
        self._in_doubt.remove(name)
        return self._standby.pop(name)

    def heard_of(self, name: str) -> None:
        """Something came from this member's trainer, whatever it is worth."""
        self._silent.pop(name, None)

    def heard_nothing(self, name: str) -> None:
        """A round of this member's closed without a word."""
        self._silent[name] = self._silent.get(name, 0) + 1

    def is_mute(self, name: str) -> bool:
        """Whether that has gone on for too long."""
        return self._silent.get(name, 0) >= self._terms.rounds.mute_rounds

    def drop(self, name: str) -> None:
        """The member is gone: nothing will come of its stand-by order or evaluation."""
        self._silent.pop(name, None)
        self._drop_standby(name)
        if self.evaluates_last(name):
            self.final = None

    def _drop_standby(self, name: str) -> None:
        order = self._standby.pop(name, None)
        self._in_doubt.discard(name)
        if order is not None:
            self.free = self.free.give_back(order.intervals)
            self.forget_evaluation(name, order.round)

    def forget_evaluation(self, name: str, round_number: int) -> None:
        """This member validates nothing more in this round: another may."""
        self._evaluating.pop((name, round_number), None)

    def free_without_orders(self) -> FreeSteps:
        """What a commit calls free: everything that no order of a closed round consumed."""
        leased: list[Interval] = [
            interval for order in self._standby.values() for interval in order.intervals
        ]
        return self.free.give_back(leased)
