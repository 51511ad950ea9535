"""A run in virtual time: the loop's own decisions, from change point to change point.

What is modelled: windows by the readings, provisioning for `provision_s`, training at a constant
rate, at full or capped power, the time that sites which train together lose to rounds, a cap on
sites, and an end when the work is done. What is not: rounds themselves, messages, crashes, the last
step of a closing window.
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from uncurtail.core.capacity import admitted
from uncurtail.core.ending import Spent
from uncurtail.core.fleet import STARTS, Phase
from uncurtail.core.forecasts import Experience, perfect
from uncurtail.core.microgrid import LOOK_AGAIN_S
from uncurtail.core.planner import Stand, Work, make_plan
from uncurtail.core.policy import (
    Budget,
    Deadline,
    Decision,
    Lookahead,
    Span,
    Verdict,
    View,
    at_site,
    costs_under,
    decide,
)
from uncurtail.plan.account import Account, shared_spans
from uncurtail.plan.changes import find_changes
from uncurtail.plan.integrate import Integral, rows_between
from uncurtail.plan.own import OwnSite, load_w
from uncurtail.plan.scenario import Outcome as Outcome  # their readers find them here
from uncurtail.plan.scenario import Scenario as Scenario
from uncurtail.plan.scenario import SiteOutcome as SiteOutcome

INF = math.inf
# In place of a site: the plan of all of them is due.
REPLAN = -1
# ... or, after every site was heard, who of those that wait may start.
ADMIT = 1 << 30


class _Site:
    """One site's state, as far as decisions need it."""

    __slots__ = (
        "at", "changes", "costs", "dim", "experience", "known", "name", "open", "outcome", "own",
        "phase", "policy", "ready_at", "since", "start_of_phase", "up_since", "version",
    )  # fmt: skip

    def __init__(self, name: str, scenario: Scenario) -> None:
        self.name = name
        self.costs = scenario.sites[name]
        trace = scenario.traces[name]
        self.policy = at_site(scenario.policy, self.costs)
        self.changes = find_changes(self.policy, trace, scenario.start, scenario.until)
        self.at = 0
        self.known = self.open = self.dim = False
        self.since = scenario.start
        self.phase = Phase.RELEASED
        self.start_of_phase = scenario.start
        self.ready_at = INF
        self.up_since: float | None = None
        self.version = 0
        self.experience = Experience() if isinstance(scenario.policy, Lookahead) else None
        self.outcome = SiteOutcome()
        self.own: OwnSite | None = None
        if name in scenario.microgrids:
            price = None if scenario.prices is None else scenario.prices[name]
            clean = scenario.policy.enter_below_g_per_kwh
            costs = costs_under(self.policy, self.costs)
            self.own = OwnSite(scenario.microgrids[name], costs, trace, price, clean)

    def observe(self, now: float) -> bool:
        """Take in what changed up to `now`; whether anything did."""
        times, before = self.changes.times, self.at
        while self.at < len(times) and times[self.at] <= now:
            t, known, is_open = (
                times[self.at],
                self.changes.known[self.at],
                self.changes.open[self.at],
            )
            if is_open != self.open:
                if self.open and known and self.experience is not None:
                    self.experience.add(t - self.since)
                self.since = t
            self.known, self.open, self.dim = known, is_open, self.changes.dim[self.at]
            self.at += 1
        return self.at > before

    def next_change(self) -> float:
        times = self.changes.times
        return times[self.at] if self.at < len(times) else INF

    def enter(self, phase: Phase, now: float) -> None:
        if phase is self.phase:
            return
        if self.phase is not Phase.RELEASED and now > self.start_of_phase:
            self.outcome.phases.append((self.phase, self.start_of_phase, now))
        self.phase, self.start_of_phase = phase, now


def simulate(scenario: Scenario) -> Outcome:
    """Play the scenario to its end; the same scenario gives the same outcome, bit for bit.

    Each provision is matched by a release: at the latest when the work is done or `until` comes.
    """
    outcome = _Simulation(scenario).run()
    if not isinstance(scenario.policy, Budget) or not _over(scenario.policy, outcome):
        return outcome
    # Halve the time until the second in which the limit is reached, and not paid back by negative
    # prices; that may lie beyond the last training: sites draw until they are released.
    low, high = scenario.start, max(end for _, _, end in _all_phases(outcome))
    while high - low > 1.0:
        middle = (low + high) / 2.0
        spent = _over(scenario.policy, _Simulation(replace(scenario, until=middle)).run())
        low, high = (low, middle) if spent else (middle, high)
    outcome = _Simulation(replace(scenario, until=high)).run()
    outcome.completed = False
    outcome.notes.append(f"the budget's limit of {_over(scenario.policy, outcome)} is reached")
    return outcome


def _all_phases(outcome: Outcome) -> Iterator[tuple[Phase, float, float]]:
    for site in outcome.sites.values():
        yield from site.phases


def _over(policy: Budget, outcome: Outcome) -> str | None:
    energy = outcome.energy
    return Spent(outcome.end, energy.emissions_g / 1000.0, energy.cost_eur).over(policy)


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.sites = [_Site(name, scenario) for name in scenario.sites]
        self.own_sites = [site for site in self.sites if site.own is not None]
        self.heap = [(scenario.start, index, 0) for index in range(len(self.sites))]
        self.now = scenario.start
        self.training: dict[str, float] = {}  # at which speed
        self.up = 0
        self.waiting: set[int] = set()
        self.done_s = 0.0
        self.last_trained = scenario.start
        self.completed = False
        self.spans: Mapping[str, tuple[Span, ...]] = {}
        self.notes: dict[str, None] = {}
        self.replanned = 0
        if isinstance(scenario.policy, Deadline):
            self.heap.insert(0, (scenario.start, REPLAN, 0))

    def run(self) -> Outcome:
        """Event after event, then the integrals."""
        scenario, heap = self.scenario, self.heap
        self.completed = scenario.train_site_s <= 0.0
        while heap and not self.completed:
            t, index, version = heapq.heappop(heap)
            if index == REPLAN:
                if version == self.replanned and self._advance(min(t, scenario.until)):
                    self._replan(t)
                continue
            if index == ADMIT:
                if self._advance(min(t, scenario.until)) and t < scenario.until:
                    self._admit(t)
                continue
            site = self.sites[index]
            if version != site.version:
                continue
            if not self._advance(min(t, scenario.until)) or t >= scenario.until:
                break
            self._handle(index, site, t)
        else:
            if not self.completed:
                self._advance(scenario.until)
        for site in self.sites:
            site.enter(Phase.RELEASED, self.now)
        return self._outcome()

    def _rate(self) -> float:
        """Training site-seconds a second."""
        speed = math.fsum(self.training.values())
        if len(self.training) < 2:
            return speed
        return speed * (1.0 - self.scenario.round_overhead_share)

    def _advance(self, t: float) -> bool:
        """Move time to `t`, or to when the work is done; False when it is."""
        rate = self._rate()
        if rate > 0.0:
            left = self.scenario.train_site_s - self.done_s
            if rate * (t - self.now) >= left:
                self._draw(self.now + left / rate)
                self.now += left / rate
                self.done_s, self.completed = self.scenario.train_site_s, True
                self.last_trained = self.now
                return False
            self.done_s += rate * (t - self.now)
            self.last_trained = t
        self._draw(t)
        self.now = t
        return True

    def _draw(self, until: float) -> None:
        """Sites with power of their own draw up to then as they have since the last event."""
        share = self.scenario.round_overhead_share if len(self.training) > 1 else 0.0
        for site in self.own_sites:
            assert site.own is not None
            site.own.draw(self.now, until, load_w(site.costs, site.phase, share), known=site.known)

    def _handle(self, index: int, site: _Site, now: float) -> None:
        if site.observe(now) and isinstance(self.scenario.policy, Deadline):
            self._replan(now)
        if site.phase is Phase.PROVISIONING and now >= site.ready_at:
            site.enter(Phase.IDLE, now)
        decision = decide(site.policy, site.costs, self._view(site, now))
        if self._apply(site, decision.verdict, now):
            self.waiting.discard(index)
        else:
            self.waiting.add(index)
            heapq.heappush(self.heap, (now, ADMIT, 0))
        site.version += 1
        heapq.heappush(self.heap, (self._next(site, decision, now), index, site.version))

    def _replan(self, now: float) -> None:
        """Make the plan anew, and ask every site again."""
        scenario = self.scenario
        assert isinstance(scenario.policy, Deadline)
        work = Work(
            now,
            min(scenario.start + scenario.policy.deadline_s, scenario.until),
            scenario.train_site_s - self.done_s,
            scenario.round_overhead_share,
            scenario.max_sites,
        )
        plan = make_plan(scenario.policy, work, {s.name: self._stand(s, now) for s in self.sites})
        self.spans = plan.spans
        if plan.no_choice is not None:
            self.notes.setdefault(plan.no_choice)
        self.replanned += 1
        if plan.revisit < scenario.until:
            heapq.heappush(self.heap, (max(plan.revisit, now + 1.0), REPLAN, self.replanned))
        for index in range(len(self.sites)):
            self._ask(index, now)

    def _stand(self, site: _Site, now: float) -> Stand:
        scenario = self.scenario
        value = scenario.traces[site.name].at(now) if site.known else None
        ready_at = None if site.up_since is None else site.ready_at
        issues, prices = scenario.issues, scenario.prices
        forecast = None if issues is None else issues.forecast(site.name, now)
        price = None if prices is None else perfect(prices[site.name], site.name, now, INF)
        return Stand(site.costs, value, site.open, ready_at, forecast, price)

    def _next(self, site: _Site, decision: Decision, now: float) -> float:
        due = min(site.next_change(), decision.revisit if decision.revisit > now else INF)
        if site.phase is Phase.PROVISIONING:
            due = min(due, site.ready_at)
        if site.own is not None:
            due = min(due, now + LOOK_AGAIN_S)
        if self.scenario.issues is not None and site.open and site.phase is Phase.RELEASED:
            due = min(due, self.scenario.issues.renewed(now))
        return due

    def _view(self, site: _Site, now: float) -> View:
        scenario = self.scenario
        forecast = None
        if scenario.issues is not None and not isinstance(scenario.policy, Deadline):
            forecast = scenario.issues.forecast(site.name, now)
        # Which value it is matters to no decision but for whether it is known.
        value = 0.0 if site.known else None
        own = None if site.own is None else site.own.own(now)
        up = site.up_since is not None
        return View(
            now,
            value,
            site.open,
            site.since,
            site.up_since,
            forecast,
            site.experience,
            self.spans.get(site.name),
            own,
            None if site.own is None or own is None else site.own.carry(own, now, up=up),
            site.dim,
        )

    def _apply(self, site: _Site, verdict: Verdict, now: float) -> bool:
        """Move the site towards its verdict; False when it waits to be admitted."""
        if site.phase is Phase.RELEASED:
            if verdict not in STARTS:
                return True
            if self.scenario.max_sites is not None:
                return False
            self._provision(site, now)
        if verdict is Verdict.REST:
            self._release(site, now)
        elif site.phase is not Phase.PROVISIONING:
            self._train(site, now, verdict)
        return True

    def _provision(self, site: _Site, now: float) -> None:
        self.up += 1
        site.outcome.provisions += 1
        site.up_since, site.ready_at = now, now + site.costs.provision_s
        site.enter(Phase.PROVISIONING if site.ready_at > now else Phase.IDLE, now)

    def _train(self, site: _Site, now: float, verdict: Verdict) -> None:
        self.training.pop(site.name, None)
        if verdict is Verdict.TRAIN:
            self.training[site.name] = 1.0
            site.enter(Phase.TRAINING, now)
        elif verdict is Verdict.CAPPED:
            assert site.costs.capped is not None
            self.training[site.name] = site.costs.capped.speed
            site.enter(Phase.CAPPED, now)
        else:
            site.enter(Phase.IDLE, now)

    def _release(self, site: _Site, now: float) -> None:
        self.training.pop(site.name, None)
        self.up -= 1
        site.up_since = None
        site.enter(Phase.RELEASED, now)
        for index in self.waiting:  # there is room now
            self._ask(index, now)

    def _admit(self, now: float) -> None:
        """Start those of the waiting sites that may be up."""
        wanting: dict[str, float | None] = {}
        for index in sorted(self.waiting):
            site = self.sites[index]
            trace = self.scenario.traces[site.name]
            alone = site.own is not None and site.own.carried is not None
            wanting[site.name] = 0.0 if alone else trace.at(now) if site.known else None
        chosen = admitted(wanting, self.up, self.scenario.max_sites)
        for index in sorted(self.waiting):
            if self.sites[index].name in chosen:
                self.waiting.remove(index)
                self._provision(self.sites[index], now)
                self._ask(index, now)

    def _ask(self, index: int, now: float) -> None:
        """Have the site decide anew."""
        site = self.sites[index]
        site.version += 1
        heapq.heappush(self.heap, (now, index, site.version))

    def _outcome(self) -> Outcome:
        scenario = self.scenario
        accounts = [Account(site.costs, site.outcome.phases) for site in self.sites]
        shared = shared_spans(accounts, scenario.round_overhead_share)
        for site, account in zip(self.sites, accounts, strict=True):
            account.share(shared, scenario.round_overhead_share)
            site.outcome.train_s = account.worked_s()
            if site.own is None:
                site.outcome.energy.add(account.energy(*self._integrals(site.name)))
            else:
                site.outcome.energy.add(site.own.energy)
        end = self.now if self.completed else self.last_trained
        sites = {site.name: site.outcome for site in self.sites}
        notes = list(self.notes)
        return Outcome(scenario.start, end, self.completed, self.done_s, sites, notes)

    def _integrals(self, site: str) -> tuple[Integral, Integral | None]:
        """Of a site's intensity, and of its price where there is one."""
        scenario = self.scenario
        traces = [scenario.traces[site]]
        if scenario.prices is not None:
            traces.append(scenario.prices[site])
        clean_below = scenario.policy.enter_below_g_per_kwh
        found = [
            Integral(trace, rows_between(trace, scenario.start, scenario.until), clean_below)
            for trace in traces
        ]
        return found[0], found[1] if len(found) > 1 else None


def events(outcome: Outcome) -> Iterator[tuple[float, str, Phase]]:
    """Every change of phase, in order of time: (from when, site, phase)."""
    rows = [
        (start, name, phase)
        for name, site in outcome.sites.items()
        for phase, start, _ in site.phases
    ]
    yield from sorted(rows)
