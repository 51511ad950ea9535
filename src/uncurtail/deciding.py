"""From what is known of every site's power to what each should do: policies, asked each tick."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from uncurtail.config import Config
from uncurtail.core import policy
from uncurtail.core.carried import carried
from uncurtail.core.events import (
    Event,
    WindowCleared,
    WindowClosed,
    WindowDimmed,
    WindowOpened,
)
from uncurtail.core.fleet import Phase, SiteState
from uncurtail.core.forecasts import Experience, Forecast, perfect, tariff
from uncurtail.core.microgrid import LOOK_AGAIN_S, Carried, Own
from uncurtail.core.planner import Plan, Stand, Work, make_plan
from uncurtail.core.policy import Costs, Deadline, Decision, Verdict, View
from uncurtail.core.pricing import filled
from uncurtail.core.signals import Reading, usable
from uncurtail.ports import Forecaster, Prices


@dataclass(slots=True)
class WindowState:
    """A site's window: open or not, since when (simulated), and how long those before lasted.

    `full`: it is open for full power, and not for capped power only.
    """

    open: bool
    since: float
    experience: Experience
    full: bool = False


class Decider:
    """Keeps windows and the plan, and asks the policy. Times are simulated unix seconds."""

    def __init__(
        self,
        config: Config,
        windows: Mapping[str, WindowState],
        forecaster: Forecaster | None,
        began: float,
        prices: Prices | None = None,
    ) -> None:
        """`windows` are what an earlier coordinator left; `began` is the start of the run."""
        self._prices = prices
        self._config = config
        self._policy = config.policy
        self._forecaster = forecaster
        self._began = began
        self._costs: dict[str, Costs] = {name: site.costs() for name, site in config.sites.items()}
        self._policies = {name: policy.at_site(self._policy, c) for name, c in self._costs.items()}
        self._windows = dict(windows)
        self._plan: Plan | None = None
        self._decisions: dict[str, Decision] = {}
        self._values: Mapping[str, float | None] = {}
        self.trouble: str | None = None  # what a deadline forces, for people to read
        self.own: Mapping[str, Own] = {}  # as of the next decision
        self._carried: dict[str, Carried | None] = {}

    def watch(self, site: str, reading: Reading | None, t: float, wall_s: float) -> Event | None:
        """Take in a reading at its time; the event if the window changed by it."""
        seen, own = self._windows[site], self._policies[site]
        is_open = policy.window(own, reading, was_open=seen.open, now=t)
        full = policy.window(policy.uncapped(own), reading, was_open=seen.full, now=t)
        was_full, seen.full = seen.full, full
        value = usable(reading, t, self._policy.stale_after_s)
        if is_open == seen.open:
            if not is_open or full == was_full or not self._caps(site) or value is None:
                return None
            self._plan = None
            kind = WindowCleared if full else WindowDimmed
            return kind(t=t, wall_s=wall_s, site=site, intensity_g_per_kwh=value)
        if not is_open and value is not None:
            seen.experience.add(t - seen.since)
        seen.open, seen.since = is_open, t
        self._plan = None
        if not is_open:
            return WindowClosed(t=t, wall_s=wall_s, site=site, intensity_g_per_kwh=value)
        if value is None:
            return None
        return WindowOpened(t=t, wall_s=wall_s, site=site, intensity_g_per_kwh=value)

    def rest(self) -> None:
        """The run winds down: nobody does anything any more."""
        self.trouble = None
        self._decisions = dict.fromkeys(self._windows, policy.REST)

    def decide(
        self,
        now: float,
        readings: Mapping[str, Reading],
        states: Mapping[str, SiteState],
        left_site_s: float | None,
    ) -> None:
        """Ask the policy about every site.

        Args:
            now: The time.
            readings: Each site's newest.
            states: What is believed of each site.
            left_site_s: Training seconds of one site that are left to do; None when unknown.
        """
        stale_s = self._policy.stale_after_s
        values = {name: usable(readings.get(name), now, stale_s) for name in self._windows}
        self._values = values
        if isinstance(self._policy, Deadline) and left_site_s is not None:
            self._replan(now, values, states, left_site_s)
        for site, seen in self._windows.items():
            view = View(
                now=now,
                value=values[site],
                window_open=seen.open,
                since=seen.since,
                up_since=states[site].up_since,
                forecast=self._forecast(site, now),
                experience=seen.experience,
                spans=None if self._plan is None else self._plan.spans.get(site),
                own=self.own.get(site),
                carried=self._carry(site, states[site], now),
                dim=seen.open and not seen.full and self._caps(site),
            )
            self._decisions[site] = policy.decide(self._policies[site], self._costs[site], view)

    def verdict(self, site: str) -> Verdict:
        """What the site should do."""
        return self._decisions[site].verdict

    def wanted(self) -> dict[str, tuple[Verdict, float | None]]:
        """What each site should do, and the intensity (g/kWh) by which: None when unknown.

        A site that its own power carries emits nothing.
        """
        return {
            site: (decision.verdict, 0.0 if self._carried.get(site) else self._values.get(site))
            for site, decision in self._decisions.items()
        }

    def next_wake(self, t: float) -> float:
        """When to decide again, even if nothing is heard."""
        wakes = [decision.revisit for decision in self._decisions.values()]
        if self._forecaster is not None:
            wakes.append(self._forecaster.renewed(t))
        if self._plan is not None:
            wakes.append(self._plan.revisit)
        if self.own:
            wakes.append(t + LOOK_AGAIN_S)
        return min((wake for wake in wakes if wake > t), default=math.inf)

    def _carry(self, site: str, state: SiteState, now: float) -> Carried | None:
        section, own = self._config.sites[site].microgrid, self.own.get(site)
        if section is None or own is None:
            return None
        # A coordinator that takes over finds sites that train on their own power, and lets them.
        found = {Phase.TRAINING: Carried(now, False), Phase.CAPPED: Carried(now, True)}
        before = self._carried.get(site, found.get(state.phase))
        costs = policy.costs_under(self._policies[site], self._costs[site])
        up = state.up_since is not None
        self._carried[site] = carried(section, costs, own, now, up=up, before=before)
        return self._carried[site]

    def _caps(self, site: str) -> bool:
        return self._policies[site].cap_below_g_per_kwh is not None

    def _forecast(self, site: str, now: float) -> Forecast | None:
        return None if self._forecaster is None else self._forecaster.forecast(site, now)

    def _price(self, site: str, now: float) -> Forecast | None:
        declared = self._config.sites[site].price_eur_per_kwh
        known = None if self._prices is None else self._prices.expected(site, now)
        if known is not None:
            return perfect(filled(known, declared, now, math.inf), site, now, math.inf)
        return None if declared is None else perfect(tariff(declared, now), site, now, math.inf)

    def _replan(
        self,
        now: float,
        values: Mapping[str, float | None],
        states: Mapping[str, SiteState],
        left_site_s: float,
    ) -> None:
        assert isinstance(self._policy, Deadline)
        if self._plan is not None and now < self._plan.revisit:
            return
        work = Work(
            now,
            self._began + self._policy.deadline_s,
            left_site_s,
            self._config.plan.round_overhead_share,
            self._config.fleet.max_sites,
        )
        stands = {
            name: Stand(
                self._costs[name],
                values[name],
                self._windows[name].open,
                _ready_at(states[name], self._costs[name], now),
                self._forecast(name, now),
                self._price(name, now),
            )
            for name in self._windows
        }
        self._plan = make_plan(self._policy, work, stands)
        self.trouble = self._plan.no_choice


def _ready_at(state: SiteState, costs: Costs, now: float) -> float | None:
    match state.phase:
        case Phase.IDLE | Phase.TRAINING | Phase.CAPPED:
            return now
        case Phase.PROVISIONING:
            return max(now, state.since + costs.provision_s)
        case Phase.RELEASED | Phase.DRAINING | Phase.RELEASING:
            return None
