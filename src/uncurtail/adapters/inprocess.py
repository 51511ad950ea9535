"""Sites in virtual time: the same orders, replies and heartbeats, without processes or tensors.

One object stands for the provisioner, the post and the state plane at once. A session boots, takes
its orders one at a time, steps at a constant rate, stops when it is not wanted, and keeps its last
answer, as the real trainer does. Faults are methods: kill, lose, double, cut off.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from uncurtail import wire
from uncurtail.core.leases import count_steps
from uncurtail.core.orders import Announcement, Desired, Heart, StepReport
from uncurtail.core.rounds import Order, Reply, answers, member


@dataclass(frozen=True, slots=True)
class SiteModel:
    """How a simulated site behaves; seconds of simulated time."""

    steps_per_s: float
    boot_s: float = 60.0
    latency_s: float = 1.5  # one way through Flower
    capped_speed: float = 1.0  # the share of `steps_per_s` at capped power


@dataclass(frozen=True, slots=True)
class _Pace:
    """From when on a session takes so many steps a second, and how many it had taken."""

    since: float
    done: float
    steps_per_s: float

    def at(self, t: float) -> float:
        return self.done + (t - self.since) * self.steps_per_s


@dataclass(slots=True)
class _Work:
    """The order a session is busy with. `began` None: a stand-by order waiting for its round.

    `paces` are those since it began, a new one for each change of power.
    """

    order: Order
    began: float | None = None
    until: float = math.inf
    paces: list[_Pace] = field(default_factory=list)


@dataclass(slots=True)
class _Session:
    number: int
    ready_at: float
    inbox: deque[tuple[float, Order]] = field(default_factory=deque)
    work: _Work | None = None
    last: Reply | None = None
    desired: Desired | None = None


class SimulatedSites:
    """All sites of a run. The driver calls `advance(t)` before each tick, in order of time."""

    def __init__(
        self,
        models: Mapping[str, SiteModel],
        tokens_per_step: int,
        start: float,
        on_consumed: Callable[[Order, Reply], None] = lambda _order, _reply: None,
    ) -> None:
        self.trouble: str | None = None
        self.now = start
        self.cut_off_until = -math.inf  # the state plane is out of reach until then
        self.lost_replies = 0  # so many of the next replies are lost on the way
        self.deaf: set[tuple[str, int]] = set()  # sessions that live, and that no order reaches
        self.doubled_replies = 0  # so many of the next replies arrive twice
        self.complaints: dict[str, str] = {}  # what a site says that it could not do
        self.skew_s = 0.0  # how far the clocks of the sites are off
        self._models = models
        self._tokens_per_step = tokens_per_step
        self._on_consumed = on_consumed
        self._left_behind: dict[tuple[int, int, str, int], Reply] = {}
        self._sessions: dict[str, dict[int, _Session]] = {site: {} for site in models}
        self._mail: list[tuple[float, Reply]] = []
        self._steps: list[StepReport] = []
        self._announced: Announcement | None = None
        self._epoch = 0

    # -- the driver's side --

    def advance(self, t: float) -> None:
        """Bring every session up to `t`."""
        self.now = t
        for site, sessions in self._sessions.items():
            for session in sessions.values():
                self._advance_session(site, session)

    def next_event(self) -> float:
        """When something happens next by itself; infinite when nothing will."""
        times = [at for at, _ in self._mail]
        for site, sessions in self._sessions.items():
            for session in sessions.values():
                times.append(session.ready_at)
                times += [at for at, _ in session.inbox]
                if session.work is not None and session.work.began is not None:
                    times.append(self._end(site, session.work))
        return min((at for at in times if at > self.now), default=math.inf)

    def kill(self, site: str) -> bool:
        """End everything a site has, as kill -9 would; False when it had nothing."""
        had = bool(self._sessions[site])
        self._sessions[site].clear()
        return had

    # -- Provisioner --

    def provision(self, site: str, session: int) -> None:
        """Start a session unless it was started."""
        if session not in self._sessions[site]:
            ready_at = self.now + self._models[site].boot_s
            self._sessions[site][session] = _Session(session, ready_at)

    def release(self, site: str, session: int) -> None:
        """End a session."""
        self._sessions[site].pop(session, None)

    def alive(self) -> dict[str, frozenset[int]]:
        """The sessions that exist."""
        return {site: frozenset(sessions) for site, sessions in self._sessions.items()}

    # -- Post --

    def send(self, order: Order) -> None:
        """Deliver an order after its way through Flower."""
        session = self._sessions[order.site].get(order.session)
        if session is None:
            self._mail.append((self.now, wire.answer(order, error="not online")))
            return
        if (order.site, order.session) not in self.deaf:
            session.inbox.append((self.now + self._models[order.site].latency_s, order))

    def receive(self) -> list[Reply]:
        """What has arrived by now."""
        here = [reply for at, reply in self._mail if at <= self.now]
        self._mail = [(at, reply) for at, reply in self._mail if at > self.now]
        return here

    def recall(self, order: Order) -> Reply | None:
        """The answer that a session left behind; it outlives the session."""
        return self._left_behind.get((order.epoch, order.round, order.site, order.session))

    def online(self) -> frozenset[str]:
        """The members that are up."""
        return frozenset(
            member(site, session.number)
            for site, sessions in self._sessions.items()
            for session in sessions.values()
            if session.ready_at <= self.now
        )

    # -- State --

    def exchange(
        self, epoch: int, desired: Mapping[str, Desired], announcement: Announcement | None
    ) -> tuple[dict[str, Heart], list[StepReport]] | None:
        """Sites see what is wanted at once, unless they are cut off."""
        if self.now < self.cut_off_until:
            self.trouble = "cut off"
            return None
        self.trouble = None
        self._announced, self._epoch = announcement, epoch
        for site, sessions in self._sessions.items():
            for session in sessions.values():
                session.desired = desired.get(site)
                self._set_pace(site, session)
                self._advance_session(site, session)
        steps, self._steps = self._steps, []
        return self._hearts(), steps

    def _hearts(self) -> dict[str, Heart]:
        hearts: dict[str, Heart] = {}
        for site, sessions in self._sessions.items():
            for session in sessions.values():
                if session.ready_at <= self.now:
                    work = session.work
                    stepping = work is not None and work.began is not None
                    number = 0 if work is None else work.order.round
                    capped = session.desired is not None and session.desired.capped
                    complaint = self.complaints.get(site)
                    hearts[site] = Heart(
                        session.number, stepping, number, 0, self.skew_s, capped, complaint
                    )
        return hearts

    # -- a session --

    def _advance_session(self, site: str, session: _Session) -> None:
        if session.ready_at > self.now:
            return
        while True:
            if session.work is None:
                if not session.inbox or session.inbox[0][0] > self.now:
                    return
                _, order = session.inbox.popleft()
                if session.last is not None and answers(session.last, order):
                    self._reply(replace(session.last, attempt=order.attempt))
                    continue
                session.work = _Work(order)
            if not self._progress(site, session, session.work):
                return

    def _progress(self, site: str, session: _Session, work: _Work) -> bool:
        """Whether the session is done with its work."""
        if work.began is None and not self._begin(site, session, work):
            late = work.order.base is not None
            if not late and not self._unwanted(session, work.order):
                return False
            self._finish(session, work, 0)
            return True
        end = self._end(site, work)
        if end > self.now and not self._unwanted(session, work.order):
            return False
        assert work.began is not None
        steps = work.paces[-1].at(max(work.paces[-1].since, min(self.now, end)))
        done = math.floor(steps + 1e-9)
        self._finish(session, work, min(done, count_steps(work.order.intervals)))
        return True

    def _set_pace(self, site: str, session: _Session) -> None:
        """Step at the speed that is wanted from now on."""
        work, model = session.work, self._models[site]
        if work is None or work.began is None:
            return
        capped = session.desired is not None and session.desired.capped
        steps_per_s = model.steps_per_s * (model.capped_speed if capped else 1.0)
        if not work.paces:
            work.paces.append(_Pace(work.began, 0.0, steps_per_s))
        elif work.paces[-1].steps_per_s != steps_per_s:
            work.paces.append(_Pace(self.now, work.paces[-1].at(self.now), steps_per_s))

    def _begin(self, site: str, session: _Session, work: _Work) -> bool:
        order, announced = work.order, self._announced
        if order.base is not None and self.now >= order.not_after_wall:
            return False
        if order.base is not None:
            work.began = self.now
            work.until = self.now + order.train_for_wall_s
            self._set_pace(site, session)
            return True
        if announced is None or (announced.epoch, announced.round) != (order.epoch, order.round):
            return False
        work.order = replace(order, base_version=announced.base_version, base=announced.base)
        work.began = self.now
        work.until = self.now + announced.close_in_wall_s
        self._set_pace(site, session)
        return True

    def _unwanted(self, session: _Session, order: Order) -> bool:
        if self._epoch > order.epoch:
            return True
        if not order.intervals:
            return False
        if session.desired is not None and not session.desired.train:
            return True
        announced = self._announced
        return announced is not None and announced.round > order.round

    def _end(self, site: str, work: _Work) -> float:
        assert work.began is not None
        pace = work.paces[-1]
        left_s = (count_steps(work.order.intervals) - pace.done) / pace.steps_per_s
        return min(pace.since + left_s, work.until)

    def _finish(self, session: _Session, work: _Work, steps: int) -> None:
        order = work.order
        reply = wire.answer(order)
        if steps:
            tokens = steps * self._tokens_per_step
            token_sha256 = _digest("tokens", order.site, str(order.intervals), str(steps))
            reply = replace(
                reply,
                steps=steps,
                tokens=tokens,
                mean_loss=1.0,
                token_sha256=token_sha256,
                update=f"updates/{order.round}/{member(order.site, order.session)}",
                update_sha256=_digest("update", order.site, str(order.round), str(steps)),
            )
            self._on_consumed(order, reply)
            self._left_behind[order.epoch, order.round, order.site, order.session] = reply
            self._steps += self._reports(order, work, steps)
        if order.evaluate and work.began is not None:
            reply = replace(reply, val_loss=8.0 / (1.0 + (order.base_version or 0)))
        session.last, session.work = reply, None
        self._reply(reply)

    def _reports(self, order: Order, work: _Work, steps: int) -> Sequence[StepReport]:
        rows = [(e, s) for e, start, stop in order.intervals for s in range(start, stop)][:steps]
        return [
            StepReport(
                site=order.site,
                session=order.session,
                round=order.round,
                epoch=epoch,
                step=step,
                loss=1.0,
                tokens=self._tokens_per_step,
                wall_s=round(_taken_at(work.paces, index + 1), 3),
            )
            for index, (epoch, step) in enumerate(rows)
        ]

    def _reply(self, reply: Reply) -> None:
        at = self.now + self._models[reply.site].latency_s
        if self.lost_replies > 0:
            self.lost_replies -= 1
            self._mail.append((at, replace(_bare(reply), error="Flower 5: lost")))
            return
        self._mail.append((at, reply))
        if self.doubled_replies > 0:
            self.doubled_replies -= 1
            self._mail.append((at + 1.0, reply))


def _taken_at(paces: Sequence[_Pace], steps: int) -> float:
    """When so many steps had been taken."""
    pace = next(p for p in reversed(paces) if p.done < steps)
    return pace.since + (steps - pace.done) / pace.steps_per_s


def _bare(reply: Reply) -> Reply:
    """What Flower still knows of a reply that it lost: whose it was."""
    return Reply(
        run=reply.run,
        epoch=reply.epoch,
        round=reply.round,
        site=reply.site,
        session=reply.session,
        attempt=reply.attempt,
        base_version=reply.base_version,
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()
