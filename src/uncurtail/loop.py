"""The coordinator's one loop: read, decide, reconcile, advance the round, record.

`tick` sleeps for nobody and waits for nobody but the store, where a merge and a commit are read and
written. It returns when it wants to be called again; being called earlier is harmless. The same
loop runs in the real world and in virtual time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uncurtail.config import Config
from uncurtail.core import ending, fleet, planner, policy
from uncurtail.core.events import (
    CoordinatorStarted,
    Event,
    RunEnded,
    SitePhase,
    SiteProvisioned,
    SiteReleased,
    StopRequested,
)
from uncurtail.core.fleet import Phase, Provision, Release, Seen, SiteState
from uncurtail.core.forecasts import Experience
from uncurtail.core.ledger import Ledger
from uncurtail.core.orders import Desired, Heart, StepReport
from uncurtail.core.policy import Budget, Deadline, Verdict
from uncurtail.core.rounds import member
from uncurtail.core.signals import Reading
from uncurtail.deciding import Decider, WindowState
from uncurtail.instruments import Instruments, OwnSupply
from uncurtail.metering import Meter
from uncurtail.orderdesk import Moment, Terms
from uncurtail.past import Past
from uncurtail.ports import (
    Commits,
    Feed,
    Forecaster,
    Merger,
    Post,
    Prices,
    Provisioner,
    Record,
    Signals,
    State,
)
from uncurtail.roundkeeper import RoundKeeper
from uncurtail.troubles import Troubles, clocks_off


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside, as the loop sees it."""

    feed: Feed
    provisioner: Provisioner
    post: Post
    state: State
    merger: Merger
    commits: Commits
    record: Record
    forecaster: Forecaster | None = None
    own: OwnSupply | None = None
    prices: Prices | None = None
    power: Sequence[Signals] = ()


class Loop:
    """One coordinator, from `start` until `finished`."""

    def __init__(self, config: Config, run_id: str, ports: Ports, past: Past, tokens: int) -> None:
        """`tokens` is what one global step trains."""
        self._config = config
        self._run_id = run_id
        self._ports = ports
        self._epoch = past.epoch
        self._began = self._took_over = past.began
        self._states = {name: past.states.get(name, SiteState()) for name in config.sites}
        windows = {
            name: WindowState(
                past.windows.get(name, False),
                past.window_since.get(name, past.began),
                past.experience.get(name, Experience()),
                past.full_windows.get(name, False),
            )
            for name in config.sites
        }
        self._decider = Decider(config, windows, ports.forecaster, past.began, ports.prices)
        self._sites = {
            name: fleet.Site(name, site.provision_s, config.fleet)
            for name, site in config.sites.items()
        }
        self._hearts: Mapping[str, Heart] = {}
        self._alive: Mapping[str, frozenset[int]] = {}
        self._troubles = Troubles(self._emit)
        self._stopping: str | None = None
        self._acted = False
        self.finished = False
        self.asked_to_stop = False
        self.meter = Meter(
            config.sites,
            {name: state.phase for name, state in self._states.items()},
            Instruments.of(config, ports),
            past.ledger,
            past.metered_until,
        )
        terms = Terms(
            run=run_id,
            epoch=past.epoch,
            speed=config.clock.speed,
            tokens_per_step=tokens,
            budget_tokens=config.train.budget_tokens,
            rounds=config.rounds,
        )
        outside = (ports.post, ports.merger, ports.commits)
        self.rounds = RoundKeeper(
            terms, past.head, past.last_round, set(past.evaluated), outside, self._emit
        )

    def start(self, t: float, wall_s: float) -> None:
        """Say that this coordinator took over, and from which model."""
        now = Moment(t, wall_s)
        self._took_over = t  # events of what was missed meanwhile come behind this one
        self._emit(
            CoordinatorStarted(
                t=now.t,
                wall_s=now.wall_s,
                epoch=self._epoch,
                run=self._run_id,
                version=self.rounds.head.version,
                tokens=self.rounds.head.tokens,
            )
        )

    def tick(self, t: float, wall_s: float) -> float:
        """Bring everything up to now; returns the simulated time of the next known change."""
        now = Moment(t, wall_s)
        self._watch_windows(self.meter.advance(t), now)
        self._wind_down(now)
        self.rounds.collect(self._ports.post.receive(), now)
        self._close_round(now)
        if self._stopping not in (None, "user"):
            self.rounds.evaluate_last(self._reachable(), now)
        self._alive = self._ports.provisioner.alive()
        self._decide(now)
        self._reconcile(now)
        able = self._able()
        self.rounds.advance(able, now, stopping=self._stopping is not None)
        if self._stopping is None:
            self.rounds.prepare(able, now)
        self.meter.change({name: state.phase for name, state in self._states.items()}, t)
        self._exchange(now)
        self.note_troubles(now)
        self.finish_when_drained(now)
        return self._next_wake(t)

    def _watch_windows(self, taken: Sequence[Reading], now: Moment) -> None:
        """Every reading gets its say at its own time, and silence has the last word."""
        for reading in taken:
            self._watch_window(reading.site, reading, max(reading.t, self._took_over), now.wall_s)
        for site in self._states:
            self._watch_window(site, self.meter.readings.get(site), now.t, now.wall_s)

    def _watch_window(self, site: str, reading: Reading | None, t: float, wall_s: float) -> None:
        event = self._decider.watch(site, reading, t, wall_s)
        if event is not None:
            self._emit(event)

    def _wind_down(self, now: Moment) -> None:
        if self._stopping is not None:
            return
        self._stopping = ending.stop_reason(
            self._config.run,
            tokens=self.rounds.head.tokens,
            budget_tokens=self._config.train.budget_tokens,
            elapsed_s=now.t - self._began,
            asked=self.asked_to_stop,
        )
        if self._stopping is None and isinstance(self._config.policy, Budget):
            self._stopping = self.meter.spent(now.t).over(self._config.policy)
        if self._stopping is not None:
            self._emit(StopRequested(t=now.t, wall_s=now.wall_s, reason=self._stopping))

    def _decide(self, now: Moment) -> None:
        """What each site should do, by all that is known."""
        if self._stopping is not None:
            self._decider.rest()
            return
        left_site_s = self._left_site_s() if isinstance(self._config.policy, Deadline) else None
        self._decider.own = self.meter.own(now.t)
        self._decider.decide(now.t, self.meter.readings, self._states, left_site_s)

    def _left_site_s(self) -> float | None:
        """Training seconds of one site that are left, by the throughput so far."""
        settings, head = self._config.policy, self.rounds.head
        assert isinstance(settings, Deadline)
        speeds = {name: site.capped_speed for name, site in self._config.sites.items()}
        worked_s = fleet.worked_s(Ledger.from_json(head.ledger, 1.0), speeds)
        budget = self._config.train.budget_tokens
        return planner.left_site_s(settings, budget, head.tokens, worked_s)

    def _reconcile(self, now: Moment) -> None:
        self._acted = False
        online = self._ports.post.online()
        kept_out = fleet.kept_out(
            self._decider.wanted(),
            self._states,
            self._alive,
            (self._config.fleet.max_sites, now.wall_s),
        )
        for site, known in self._sites.items():
            before = self._states[site]
            step = fleet.reconcile(
                known,
                before,
                Verdict.REST if site in kept_out else self._decider.verdict(site),
                self._see(site, online),
                (now.t, now.wall_s),
            )
            self._states[site] = step.state
            self._say(site, before, step, now)
            self._acted |= bool(step.actions) or (bool(kept_out) and step.released_as is not None)
            for action in step.actions:
                match action:
                    case Provision(name, session):
                        self._ports.provisioner.provision(name, session)
                    case Release(name, session):
                        self._ports.provisioner.release(name, session)
            if step.released_as is not None:
                self.rounds.lost(site, before.session, now)

    def _say(self, site: str, before: SiteState, step: fleet.Step, now: Moment) -> None:
        """One event for each thing that changed, in the order in which it happened."""
        after = step.state
        said: list[Event] = []
        if after.session != before.session:
            said.append(
                SiteProvisioned(t=now.t, wall_s=now.wall_s, site=site, session=after.session)
            )
        if after.phase is not before.phase:
            # Power first: whoever finds the event after a kill goes on in the new phase from here.
            self.meter.cut(now.t)
            said.append(
                SitePhase(
                    t=now.t,
                    wall_s=now.wall_s,
                    site=site,
                    session=after.session,
                    phase=after.phase,
                    power_w=self._config.sites[site].power_w(after.phase),
                )
            )
        if step.released_as is not None:
            said.append(
                SiteReleased(
                    t=now.t,
                    wall_s=now.wall_s,
                    site=site,
                    session=before.session,
                    cause=step.released_as,
                )
            )
        if said:
            self._emit(*said)

    def _see(self, site: str, online: frozenset[str]) -> Seen:
        session = self._states[site].session
        heart = self._hearts.get(site)
        return Seen(
            sessions=self._alive.get(site, frozenset()),
            ready=heart is not None
            and heart.session == session
            and member(site, session) in online,
            stepping=self._stepping(site),
            busy=self.rounds.busy(site, session),
            capped=heart is not None and heart.capped,
            mute=self.rounds.mute(site, session),
        )

    def _stepping(self, site: str) -> bool:
        heart = self._hearts.get(site)
        return heart is not None and heart.stepping and heart.session == self._states[site].session

    def _trains(self, site: str) -> bool:
        return self._decider.verdict(site) in (Verdict.TRAIN, Verdict.CAPPED)

    def _able(self) -> dict[str, int]:
        """The sites that may train now, with their sessions."""
        leaving = (Phase.DRAINING, Phase.RELEASING)
        return {
            site: session
            for site, session in self._reachable().items()
            if self._trains(site) and self._states[site].phase not in leaving
        }

    def _reachable(self) -> dict[str, int]:
        """The sites that an order could reach now, with their sessions."""
        online = self._ports.post.online()
        return {
            site: state.session
            for site, state in self._states.items()
            if state.phase not in (Phase.RELEASED, Phase.PROVISIONING)
            and member(site, state.session) in online
        }

    def _close_round(self, now: Moment) -> None:
        closed = self.rounds.close(now, stopping=self._stopping is not None)
        if closed is None:
            return
        self.meter.cut(now.t)
        self._ports.record.sync()
        ledger = self.meter.ledger.to_json()
        self.rounds.commit(closed, ledger, self._ports.record.offset(), now)

    def _exchange(self, now: Moment) -> None:
        desired = {
            site: Desired(
                epoch=self._epoch,
                session=state.session,
                train=self._trains(site) and state.phase not in (Phase.DRAINING, Phase.RELEASING),
                capped=self._decider.verdict(site) is Verdict.CAPPED,
            )
            for site, state in self._states.items()
        }
        unlike = ((Phase.TRAINING, True), (Phase.CAPPED, False))
        self._acted |= any(
            wanted.train and (self._states[site].phase, wanted.capped) in unlike
            for site, wanted in desired.items()
        )
        answer = self._ports.state.exchange(self._epoch, desired, self.rounds.announcement(now))
        if answer is None:
            return  # out of reach: what was last heard stands
        self._hearts, steps = answer
        self._ports.record.steps((self._simulated(step, now), step) for step in steps)

    def _simulated(self, step: StepReport, now: Moment) -> float:
        ago_s = max(0.0, now.wall_s - step.wall_s) * self._config.clock.speed
        return round(max(self._began, now.t - ago_s), 3)

    def note_troubles(self, now: Moment) -> None:
        """Write down what fails outside."""
        sessions = {site: state.session for site, state in self._states.items()}
        messages = {
            "flower": self._ports.post.trouble,
            "redis": self._ports.state.trouble,
            "fleet": self._ports.provisioner.trouble,
            "energy": self._ports.feed.trouble,
            **self.meter.troubles(now.t),
            "deadline": self._decider.trouble,
            "clock": clocks_off(self._hearts, sessions),
        }
        self._troubles.note(messages, now)
        self._troubles.note_once({f"site {n}": h.trouble for n, h in self._hearts.items()}, now)

    def finish_when_drained(self, now: Moment) -> None:
        """End the run once it winds down, every site is gone and no round is open."""
        if self._stopping is None or self.finished:
            return
        gone = all(state.phase is Phase.RELEASED for state in self._states.values())
        if not gone or any(self._alive.values()) or self.rounds.current is not None:
            return
        self.meter.cut(now.t)
        head = self.rounds.head
        self._emit(
            RunEnded(
                t=now.t,
                wall_s=now.wall_s,
                reason=self._stopping,
                version=head.version,
                tokens=head.tokens,
            )
        )
        self._ports.record.sync()
        self.finished = True

    def _next_wake(self, t: float) -> float:
        wakes = [self.meter.next_change(t), self._decider.next_wake(t)]
        if self._acted:  # look whether it helped
            wakes.append(t + 1.0)
        for site, state in self._states.items():
            stale = policy.stale_at(self._config.policy, self.meter.readings.get(site))
            wakes.append(stale + 0.001)
            if state.phase is Phase.PROVISIONING:
                wakes.append(state.since + self._config.sites[site].provision_s)
        if self.rounds.current is not None:
            wakes.append(self.rounds.current.deadline)
        if isinstance(self._config.policy, Budget):
            wakes.append(self.meter.spent(t).over_at(self._config.policy))
        if self._config.run.duration_s is not None:
            wakes.append(self._began + self._config.run.duration_s)
        return min((wake for wake in wakes if wake > t), default=float("inf"))

    def _emit(self, *events: Event) -> None:
        self._ports.record.events(events)
