"""Carries rounds through: opens, orders, collects, closes, commits. Decides by `core.rounds`.

What is leased is neither lost nor trained twice: a step is free, on lease in exactly one order, or
consumed by an accepted update. A commit counts everything on lease as free: whoever resumes from
it starts with no order out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from uncurtail import wire
from uncurtail.core import commit as commits
from uncurtail.core import rounds
from uncurtail.core.commit import Accepted, Commit
from uncurtail.core.events import (
    Evaluated,
    OrderSent,
    RoundCommitted,
    RoundOpened,
    RoundSkipped,
    UpdateAccepted,
    UpdateRejected,
)
from uncurtail.core.leases import split
from uncurtail.core.orders import Announcement
from uncurtail.core.rounds import Order, Reply, Round, member
from uncurtail.orderdesk import Moment, OrderDesk, Terms
from uncurtail.ports import Commits, Merger, Post


class FencedError(RuntimeError):
    """Another coordinator committed: this one must not go on."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A round that ended with something to commit."""

    round: Round
    updates: tuple[Accepted, ...]


class RoundKeeper:
    """The open round, the orders out, and the newest commit."""

    def __init__(
        self,
        terms: Terms,
        head: Commit,
        last_round: int,
        evaluated: set[int],
        outside: tuple[Post, Merger, Commits],
        emit: Callable[..., None],
    ) -> None:
        self.head = head
        self.current: Round | None = None
        self._terms = terms
        self._desk = OrderDesk(terms, head, evaluated)
        self._number = last_round
        self._last_attempts = 0
        # (round, member, hash): answers that count
        self._accepted: set[tuple[int, str, str]] = set()
        self._tokens_at = {head.version: head.tokens}
        self._post, self._merger, self._commits = outside
        self._emit = emit

    def busy(self, site: str, session: int) -> bool:
        """Whether an answer of this session is worth waiting for (a stand-by order's is not)."""
        name = member(site, session)
        return self._desk.evaluates_last(name) or (
            self.current is not None and name in self.current.waiting()
        )

    def mute(self, site: str, session: int) -> bool:
        """Whether nothing has come of this session for too many of its rounds."""
        return self._desk.is_mute(member(site, session))

    def announcement(self, now: Moment) -> Announcement | None:
        """What completes stand-by orders: the open round."""
        if self.current is None:
            return None
        left_wall_s = max(0.0, (self.current.deadline - now.t) / self._terms.speed)
        return Announcement(
            epoch=self._terms.epoch,
            round=self.current.number,
            base_version=self.current.base_version,
            base=self.current.base,
            close_in_wall_s=left_wall_s,
            not_after_wall=now.wall_s + left_wall_s,
            tokens_at_start=self.head.tokens,
            sites=max(1, len(self.current.orders)),
        )

    def advance(self, able: Mapping[str, int], now: Moment, *, stopping: bool) -> None:
        """Open a round if one can be, and let every able site (name -> session) join it."""
        if rounds.should_open(current=self.current, able=able, stopping=stopping):
            self._open(now)
        if self.current is None or stopping:
            return
        for site in rounds.joiners(self.current, able, now.t):
            self._order(site, able[site], len(able), now)

    def prepare(self, able: Mapping[str, int], now: Moment) -> None:
        """Send each able site (name -> session) with an order out its stand-by order for the next.

        It waits in Flower's queue while the site trains, and hides most of Flower's latency. Not
        only once the site steps: where a message takes longer than a round, the first order always
        comes too late, and only one that is there already when its round opens is ever trained.
        """
        current = self.current
        if current is None:
            return
        for site, session in able.items():
            name = member(site, session)
            if name not in current.waiting() or self._desk.on_standby(name):
                continue
            blank = self._desk.order(current, self.head, (site, session, len(able)), now)
            order = self._desk.stand_by(blank, current, self.head)
            if order is not None:
                self._post.send(order)

    def evaluate_last(self, able: Mapping[str, int], now: Moment) -> None:
        """Have the newest model validated before the last site goes, once no round is open."""
        evaluated = self._desk.final is not None or self.head.version in self._desk.evaluated
        attempts = self._terms.rounds.attempts
        if self.current is not None or evaluated or self._last_attempts >= attempts:
            return
        for who in able.items():
            self._last_attempts += 1
            # A round of its own, beyond a stand-by order's: a trainer repeats what it has answered.
            label = (self._number + 2, self._last_attempts)
            not_after = now.wall_s + self._terms.rounds.grace_wall_s
            self._post.send(self._desk.last_evaluation(self.head, who, label, not_after))
            return

    def collect(self, replies: list[Reply], now: Moment) -> None:
        """Judge what came back."""
        for reply in replies:
            self._collect_one(reply, now)

    def lost(self, site: str, session: int, now: Moment) -> None:
        """A session is gone: nothing will come of its orders."""
        name = member(site, session)
        self._desk.drop(name)
        if self.current is not None and name in self.current.waiting():
            self._give_up(self.current.orders[name], "the site is gone", now)

    def close(self, now: Moment, *, stopping: bool) -> Closed | None:
        """Close the open round when its time has come; what is to be committed, if anything.

        What no accepted update consumed is free again, at once.
        """
        current = self.current
        if current is None or not rounds.should_close(
            current, now=now.t, now_wall=now.wall_s, stopping=stopping
        ):
            return None
        for name in sorted(current.waiting()):
            if not self._give_up(current.orders[name], "no answer in time", now):
                self._desk.heard_nothing(name)
        current, self.current = self.current, None
        assert current is not None
        consumed = {member(reply.site, reply.session): reply for reply in current.accepted}
        counted: list[Accepted] = []
        for name, order in current.orders.items():
            reply = consumed.get(name)
            used, unused = split(order.intervals, 0 if reply is None else reply.steps)
            self._desk.free = self._desk.free.give_back(unused)
            if reply is not None:
                counted.append(rounds.counted(reply, used))
        if not counted:
            self._merger.reset()
            self._emit(RoundSkipped(t=now.t, wall_s=now.wall_s, round=current.number))
            return None
        return Closed(current, tuple(counted))

    def commit(
        self,
        closed: Closed,
        ledger: Mapping[str, Any],
        event_offset: int,
        now: Moment,
    ) -> None:
        """Make the round durable: model, leases and ledger in one put-if-absent.

        Raises:
            FencedError: A commit of this version exists: another coordinator is at work.
        """
        model, outer = self._merger.finish(closed.round.base, self.head.outer)
        commit = Commit(
            run=self._terms.run,
            version=self.head.version + 1,
            epoch=self._terms.epoch,
            round=closed.round.number,
            parent_sha256=self.head.sha256(),
            t=now.t,
            wall_s=now.wall_s,
            model=model,
            outer=outer,
            tokens=self.head.tokens + sum(update.tokens for update in closed.updates),
            free=self._desk.free_without_orders(),
            updates=closed.updates,
            ledger=ledger,
            event_offset=event_offset,
        )
        if not self._commits.put_new(commits.key(commit.version), commit.encode()):
            raise FencedError(f"version {commit.version} is committed already")
        keep = {commit.model, commit.outer or "", self.head.model, self.head.outer or ""}
        self.head = commit
        self._tokens_at[commit.version] = commit.tokens
        self._commits.retire(keep, closed.round.number)
        self._emit(
            RoundCommitted(
                t=now.t,
                wall_s=now.wall_s,
                round=closed.round.number,
                version=commit.version,
                tokens=commit.tokens,
                sites=sorted({update.site for update in closed.updates}),
                sha256=commit.sha256(),
            )
        )

    def _open(self, now: Moment) -> None:
        terms = self._terms
        self._number += 1
        length_s = terms.rounds.length_s
        self.current = Round(
            number=self._number,
            base_version=self.head.version,
            base=self.head.model,
            deadline=now.t + length_s,
            close_wall=now.wall_s + length_s / terms.speed + terms.rounds.grace_wall_s,
        )
        self._emit(
            RoundOpened(
                t=now.t,
                wall_s=now.wall_s,
                round=self._number,
                base_version=self.head.version,
                deadline=self.current.deadline,
            )
        )
        for order in self._desk.start_standby(self._number):
            self._place(replace(order, base_version=self.head.version, base=self.head.model), now)

    def _order(self, site: str, session: int, sites: int, now: Moment) -> None:
        assert self.current is not None
        doubtful = self._desk.take_doubtful(member(site, session))
        if doubtful is not None:
            self._send_again(doubtful, now)
            return
        blank = self._desk.order(self.current, self.head, (site, session, sites), now)
        order = self._desk.lease(blank, self.current, self.head, self.current.base_version)
        if order is not None:
            self._place(order, now)
            self._post.send(order)

    def _place(self, order: Order, now: Moment) -> None:
        assert self.current is not None
        self.current = self.current.with_order(order)
        self._emit(
            OrderSent(
                t=now.t,
                wall_s=now.wall_s,
                round=order.round,
                site=order.site,
                session=order.session,
                attempt=order.attempt,
                intervals=[list(interval) for interval in order.intervals],
            )
        )

    def _collect_one(self, reply: Reply, now: Moment) -> None:
        name = member(reply.site, reply.session)
        if reply.error is None:
            self._desk.heard_of(name)
        self._note_evaluation(reply, now)
        if self._desk.ended_early(reply):
            return
        order = None if self.current is None else self.current.orders.get(name)
        if reply.error is not None and order is not None:
            if (reply.round, reply.attempt) != (order.round, order.attempt):
                return  # an earlier attempt's: it says nothing of the one that is out
            reply = self._post.recall(order) or reply  # lost on the way, not at the site
        self._judge(reply, now)

    def _judge(self, reply: Reply, now: Moment) -> None:
        reason = rounds.judge(self.current, reply, self._terms.tokens_per_step)
        if reason is None and reply.steps:
            assert self.current is not None
            reason = self._merger.fold(
                reply.update or "", reply.update_sha256, self.current.base, reply.tokens
            )
        if reason is None:
            self._accept(reply, now)
        elif reply.error and self._asked_again(reply, now):
            return
        else:
            self._reject(reply, reason, now)

    def _accept(self, reply: Reply, now: Moment) -> None:
        assert self.current is not None
        self.current = self.current.with_answer(reply, accepted=reply.steps > 0)
        self._desk.forget_evaluation(member(reply.site, reply.session), reply.round)
        if not reply.steps:
            return
        self._accepted = {key for key in self._accepted if key[0] >= reply.round - 1}
        self._accepted.add((reply.round, member(reply.site, reply.session), reply.update_sha256))
        self._emit(
            UpdateAccepted(
                t=now.t,
                wall_s=now.wall_s,
                round=reply.round,
                site=reply.site,
                session=reply.session,
                steps=reply.steps,
                tokens=reply.tokens,
                mean_loss=reply.mean_loss,
                sha256=reply.update_sha256,
            )
        )

    def _asked_again(self, reply: Reply, now: Moment) -> bool:
        """Send a lost order again: the trainer keeps its answer and trains nothing twice."""
        current = self.current
        if current is None or not rounds.may_retry(self._terms.rounds, current, reply, now.wall_s):
            return False
        self._send_again(current.orders[member(reply.site, reply.session)], now)
        return True

    def _send_again(self, order: Order, now: Moment) -> None:
        assert self.current is not None
        again = self._desk.renewed(order, self.current, self.head, now)
        self._place(again, now)
        self._post.send(again)

    def _reject(self, reply: Reply, reason: str, now: Moment) -> None:
        name = member(reply.site, reply.session)
        current = self.current
        if current is not None and name in current.waiting() and reply.round == current.number:
            self.current = current.with_answer(reply, accepted=False)
            self._desk.forget_evaluation(name, reply.round)
        if not reply.steps and reply.error is None:
            return  # it had been stopped before its first step: nothing is lost
        if (reply.round, name, reply.update_sha256) in self._accepted:
            return  # the same once more: it counts, and nothing is lost
        self._emit(
            UpdateRejected(
                t=now.t,
                wall_s=now.wall_s,
                round=reply.round,
                site=reply.site,
                session=reply.session,
                steps=reply.steps,
                reason=reason,
            )
        )

    def _give_up(self, order: Order, reason: str, now: Moment) -> bool:
        """Nothing more will come for this order, but what the site left in the store counts.

        Returns:
            Whether it had left something.
        """
        found = self._post.recall(order)
        if found is not None:
            self._judge(found, now)
        current = self.current
        if current is not None and member(order.site, order.session) in current.waiting():
            self._reject(wire.answer(order, error=reason), reason, now)
        return found is not None

    def _note_evaluation(self, reply: Reply, now: Moment) -> None:
        """A validation loss counts for its model version, whatever becomes of the update."""
        if reply.val_loss is None or reply.base_version is None or reply.run != self._terms.run:
            return
        self._desk.forget_evaluation(member(reply.site, reply.session), reply.round)
        if reply.base_version not in self._tokens_at or reply.base_version in self._desk.evaluated:
            return
        if not math.isfinite(reply.val_loss):
            return
        self._desk.evaluated.add(reply.base_version)
        self._emit(
            Evaluated(
                t=now.t,
                wall_s=now.wall_s,
                version=reply.base_version,
                tokens=self._tokens_at[reply.base_version],
                site=reply.site,
                val_loss=reply.val_loss,
            )
        )
