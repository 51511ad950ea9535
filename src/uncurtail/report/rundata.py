"""A run folder read once, in the shape that tables and figures need.

Times are simulated unix seconds. Nothing is invented: what a run does not say stays None or empty.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from uncurtail.core.commit import Commit
from uncurtail.core.events import (
    CoordinatorStarted,
    Evaluated,
    Event,
    RunEnded,
    SitePhase,
    SiteProvisioned,
    WindowCleared,
    WindowClosed,
    WindowDimmed,
    WindowOpened,
)
from uncurtail.core.fleet import Phase, worked_s
from uncurtail.core.ledger import Ledger, Segment, baselines_kg, own_kwh
from uncurtail.core.orders import StepReport
from uncurtail.core.policy import kind_of
from uncurtail.core.signals import Trace
from uncurtail.runfolder import RunFolder

DRAWING = tuple(phase for phase in Phase if phase is not Phase.RELEASED)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch [start, end) of simulated time; `label` is the phase, or "" for a window."""

    start: float
    end: float
    label: str = ""


class RunData:
    """Everything a report says, derived from the folder's own files."""

    def __init__(self, folder: RunFolder) -> None:
        """Read the folder.

        Raises:
            FileNotFoundError: It holds no resolved.json, so it is no run.
            ValueError: A file in it is damaged.
        """
        if not folder.resolved.is_file():
            raise FileNotFoundError(f"{folder.path} is no run folder: it has no resolved.json")
        self.folder = folder
        self.config: dict[str, Any] = json.loads(folder.resolved.read_text(encoding="utf-8"))
        self.events: list[Event] = folder.read_events()
        self.segments: list[Segment] = [row.segment for row in folder.read_power()]
        self.steps: list[tuple[float, StepReport]] = sorted(
            folder.read_steps(), key=lambda item: item[0]
        )
        self.commits: list[Commit] = folder.read_commits()
        self.sites: list[str] = list(self.config["sites"])

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.run_id

    @cached_property
    def start(self) -> float | None:
        """When the first coordinator started; None for a run that never did."""
        return next((e.t for e in self.events if isinstance(e, CoordinatorStarted)), None)

    @cached_property
    def end(self) -> float | None:
        """The last time that anything in the folder speaks of."""
        if self.start is None:
            return None
        times = [self.start, self.events[-1].t]
        times += [segment.end for segment in self.segments[-len(self.sites) :]]
        return max(times)

    @property
    def ended(self) -> RunEnded | None:
        """How the run ended, or None while it has not."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, RunEnded) else None

    @property
    def committed(self) -> Commit | None:
        """The newest commit that holds training, or None."""
        return self.commits[-1] if self.commits and self.commits[-1].version > 0 else None

    @property
    def policy(self) -> str:
        """The kind of the run's policy."""
        return kind_of(self.config["policy"])

    @property
    def enter_below_g_per_kwh(self) -> float:
        """Below this intensity energy counts as curtailed."""
        return float(self.config["policy"]["enter_below_g_per_kwh"])

    @property
    def evaluations(self) -> list[Evaluated]:
        """Every validation, by model version."""
        found = [event for event in self.events if isinstance(event, Evaluated)]
        return sorted(found, key=lambda event: event.version)

    @cached_property
    def traces(self) -> dict[str, Trace]:
        """Each site's readings up to the run's end."""
        if self.end is None:
            return {}
        last = max((reading.t for reading in self.folder.read_readings()), default=self.end)
        # A reading published in the run's last instant must still lie before the end.
        return self.folder.read_traces(math.nextafter(max(self.end, last), math.inf))

    @cached_property
    def ledger(self) -> Ledger:
        """Energy and emissions from the power series: every phase, also after the last commit."""
        return Ledger.from_segments(self.segments, self.enter_below_g_per_kwh)

    @cached_property
    def known_from(self) -> float:
        """From when on every site's intensity was known: where its alternatives begin.

        A live source is heard of seconds after a run's start. A site that nobody ever heard of
        delays no other.
        """
        assert self.start is not None
        firsts = [trace.times[np.isfinite(trace.values)] for trace in self.traces.values()]
        return max([self.start, *(float(times[0]) for times in firsts if times.size)])

    @property
    def own_kwh(self) -> dict[str, dict[str, float]]:
        """Where the power of each site with a microgrid came from, in kWh."""
        sites = self.config["sites"]
        return {
            site: own_kwh(self.ledger.total(site=site))
            for site in self.sites
            if sites[site].get("microgrid") is not None
        }

    @property
    def train_s(self) -> float:
        """Training site-seconds at full power, summed over sites."""
        return self.worked_s()

    def worked_s(self, site: str | None = None) -> float:
        """Training of a site, or of all, in seconds at full power: capped ones count by speed."""
        speeds = {name: body.get("capped_speed") for name, body in self.config["sites"].items()}
        return worked_s(self.ledger, speeds, site)

    @cached_property
    def drawing(self) -> tuple[Phase, ...]:
        """The phases to show: all that draw power, and the capped one where a site was in it."""
        capped = any(segment.phase == Phase.CAPPED for segment in self.segments)
        return tuple(phase for phase in DRAWING if capped or phase is not Phase.CAPPED)

    @cached_property
    def baselines_kg(self) -> dict[str, float | None]:
        """Each site alone and always on, for the same training site-hours, in kgCO2."""
        known: dict[str, float | None] = {}
        if self.start is not None and self.train_s > 0:
            power_w = {site: self.train_power_w(site) for site in self.traces}
            known = baselines_kg(self.traces, self.known_from, self.train_s, power_w)
        return {site: known.get(site) for site in self.sites}

    def train_power_w(self, site: str) -> float:
        """What a site is declared to draw while it trains."""
        return float(self.config["sites"][site]["train_power_w"])

    def emissions_kg(self, site: str | None = None) -> float | None:
        """Emissions of a site, or of all, in kgCO2.

        Energy that nobody could price is left out. None when nothing was metered, or when all of
        it is unpriced. What drew nothing emitted nothing.
        """
        total = self.ledger.total(site=site)
        if not self.segments or 0 < total.energy_j <= total.unpriced_j:
            return None
        return total.emissions_g / 1000.0

    def provisions(self, site: str) -> int:
        """How often the site was started."""
        return sum(isinstance(e, SiteProvisioned) and e.site == site for e in self.events)

    def phases(self, site: str) -> list[Span]:
        """The site's phases other than released, in order, from the phase events."""
        changes = [
            (event.t, event.phase if event.phase != Phase.RELEASED else None)
            for event in self.events
            if isinstance(event, SitePhase) and event.site == site
        ]
        return self._spans(changes)

    def windows(self, site: str) -> list[Span]:
        """When the site's window was open."""
        changes = [
            (event.t, "" if isinstance(event, WindowOpened) else None)
            for event in self.events
            if isinstance(event, WindowOpened | WindowClosed) and event.site == site
        ]
        return self._spans(changes)

    @property
    def caps(self) -> bool:
        """Whether windows have a level for capped power; older runs know of none."""
        return self.config["policy"].get("cap_below_g_per_kwh") is not None

    def dim_windows(self, site: str) -> list[Span]:
        """When the site's window was open for capped power only."""
        changes = [
            (event.t, "" if self._dims(event) else None)
            for event in self.events
            if isinstance(event, WindowOpened | WindowDimmed | WindowCleared | WindowClosed)
            and event.site == site
        ]
        return self._spans(changes) if self.caps else []

    def _dims(self, event: Event) -> bool:
        match event:
            case WindowOpened(intensity_g_per_kwh=value):
                return value >= self.enter_below_g_per_kwh
            case _:
                return isinstance(event, WindowDimmed)

    def _spans(self, changes: Iterable[tuple[float, str | None]]) -> list[Span]:
        """Stretches between changes; label None means nothing. The last one lasts until the end."""
        spans: list[Span] = []
        since, label = 0.0, None
        for t, new in [*changes, (self.end or 0.0, None)]:
            if label is not None and t > since:
                spans.append(Span(since, t, label))
            since, label = t, new
        return spans


def overlap_s(left: Iterable[Span], right: Iterable[Span]) -> float:
    """Seconds that lie in a span of both lists, each without overlaps of its own."""
    theirs = list(right)
    return sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in left for b in theirs)
