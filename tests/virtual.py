"""A whole run in virtual time: the real loop, journal, commits and Vessim; simulated sites."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uncurtail import config as configuration
from uncurtail import sourcing, wiring
from uncurtail.adapters.blobs import ObjectStore
from uncurtail.adapters.inprocess import SimulatedSites, SiteModel
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.adapters.vessim import VessimFeed
from uncurtail.config import Config
from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.core.events import Event, iso, unix
from uncurtail.core.leases import FreeSteps, split
from uncurtail.core.ledger import Segment
from uncurtail.core.orders import StepReport
from uncurtail.core.rounds import Order, Reply
from uncurtail.core.signals import Reading, Trace
from uncurtail.loop import Loop, Ports
from uncurtail.past import Past
from uncurtail.ports import Provisioner, Signals
from uncurtail.runfolder import Journal, RunFolder

START = "2026-07-24T06:00:00+00:00"
TOKENS_PER_STEP = 2048


def experiment(**sections) -> Config:
    """The demo's three grids, real time, two-hour horizon unless told otherwise."""
    body: dict[str, Any] = {
        "name": "virtual",
        "clock": {"start": START, "speed": 1.0},
        "run": {"duration_s": 12 * 3600.0},
        "energy": {"seed": 40},
        "sites": {
            "duck": {"preset": "duck", "utc_offset_h": -8},
            "solar": {"preset": "solar", "utc_offset_h": 9.5},
            "windy": {"preset": "windy", "utc_offset_h": -6},
        },
        "train": {"budget_tokens": 10**9},
        "rounds": {"length_s": 1800.0, "max_steps": 60, "grace_wall_s": 20.0},
    }
    for name, section in sections.items():
        body[name] = {**body.get(name, {}), **section} if isinstance(section, dict) else section
    return configuration.parse(body, "test")


def rewrite_power(folder: RunFolder, change: Callable[[list[dict[str, str]]], None]) -> None:
    """Change the rows of power.csv, as somebody might who wants a run to look better."""
    path = folder.series / "power.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class Polled(LiveFeed):
    """A live feed whose thread's work is done at each tick: nothing depends on its pace."""

    def readings(self, after: float, until: float) -> list[Reading]:
        self.poller.poll()
        return super().readings(after, until)


@dataclass
class CountingMerger:
    """A merger without tensors: it counts, and refuses what `refuse` names."""

    store: ObjectStore
    refuse: Callable[[str], str | None] = lambda _update: None
    folded: int = 0
    version: int = 0

    def fold(self, update: str, sha256: str, base: str, tokens: int) -> str | None:
        reason = self.refuse(update)
        self.folded += reason is None
        return reason

    def finish(self, base: str, outer: str | None) -> tuple[str, str | None]:
        assert self.folded > 0
        self.folded = 0
        self.version += 1
        return self.store.put_hashed(f"after {base}, {self.version}".encode()), None

    def reset(self) -> None:
        self.folded = 0


class Killed(Exception):  # noqa: N818 - nothing went wrong: somebody struck
    """The coordinator is gone, in the middle of a tick."""


class MortalJournal(Journal):
    """A journal whose process can be killed at a write: just before it, or just after it."""

    lives: int | None = None  # writes until the end; None: for ever
    after = False  # the last write still gets through

    def _at_a_write(self) -> bool:
        """Count one; whether to end right behind it."""
        if self.lives is None:
            return False
        self.lives -= 1
        if self.lives > 0:
            return False
        if not self.after:
            raise Killed
        return True

    def _mortal(self, write: Callable[[Any], None], what: Any) -> None:
        last = self._at_a_write()
        write(what)
        if last:
            raise Killed

    def events(self, events: Sequence[Event]) -> None:
        self._mortal(super().events, events)

    def reading(self, reading: Reading) -> None:
        self._mortal(super().reading, reading)

    def price(self, reading: Reading) -> None:
        self._mortal(super().price, reading)

    def power(self, segments: Sequence[tuple[Segment, float]]) -> None:
        self._mortal(super().power, segments)

    def steps(self, rows: Iterable[tuple[float, StepReport]]) -> None:
        self._mortal(super().steps, [*rows])


@dataclass
class Virtual:
    """One run folder, its simulated sites, and the coordinator of the moment."""

    path: Path
    settings: Config = field(default_factory=experiment)
    steps_per_epoch: int = 500
    traces: dict[str, Trace] | None = None
    latency_s: float = 1.5  # one way through Flower
    power: Callable[[], Sequence[Signals]] = tuple  # what measures, made anew at each restart

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.path / "virtual-1")
        self.folder.create()
        self.folder.resolved.write_text(configuration.dump(self.settings))
        self.store = ObjectStore(None, self.folder.path)
        self.t = unix(START)
        models = {
            name: SiteModel(
                steps_per_s=0.05, latency_s=self.latency_s, capped_speed=site.capped_speed or 1.0
            )
            for name, site in self.settings.sites.items()
        }
        self.sites = SimulatedSites(models, TOKENS_PER_STEP, self.t, self._consumed)
        self.merger = CountingMerger(self.store)
        if self.traces is None:
            self.traces = wiring.traces(self.settings, self.t)
        self.journal = MortalJournal(self.folder)
        self.loop = self._coordinator()

    def close(self) -> None:
        self.journal.close()

    def restart(self) -> None:
        """kill -9 of the coordinator, and a new one from what is on disk."""
        self.journal.close()
        self.journal = MortalJournal(self.folder)
        self.loop = self._coordinator()

    def until(
        self, t: float, faults: Sequence[tuple[float, Callable[["Virtual"], object]]] = ()
    ) -> None:
        """Run to `t`, or until the loop is finished; faults strike at their times."""
        pending = sorted(faults, key=lambda fault: fault[0])
        while not self.loop.finished and self.t <= t:
            while pending and pending[0][0] <= self.t:
                pending.pop(0)[1](self)
            self.sites.advance(self.t)
            try:
                wake = self.loop.tick(self.t, self.t)
            except Killed:
                self.t += 1.0
                self.restart()
                continue
            due = [wake, self.sites.next_event(), self.t + 60.0]
            due += [at for at, _ in pending[:1] if at > self.t]
            self.t = round(max(self.t + 0.2, min(due)), 3)  # as the real clock's

    def finish(self) -> None:
        """Run to the end."""
        self.until(unix(START) + (self.settings.run.duration_s or 0.0) + 3600.0)
        assert self.loop.finished

    def _coordinator(self) -> Loop:
        head = wiring.newest_commit(self.folder, self.store) or self._first_commit()
        before = wiring.past(self.settings, self.folder, head, unix(START))
        ports = Ports(
            feed=VessimFeed(self.traces or {}, before.metered_until),
            provisioner=self._provisioner(before),
            post=self.sites,
            state=self.sites,
            merger=self.merger,
            commits=self.store,
            record=self.journal,
            forecaster=wiring.forecaster(self.settings, self.traces or {}, before.began),
            own=wiring.own_supply(self.settings, before),
            prices=sourcing.prices(self.settings, before.metered_until),
            power=self.power(),
        )
        loop = Loop(self.settings, self.folder.run_id, ports, before, TOKENS_PER_STEP)
        known = wiring.last_readings(self.folder)
        if known:
            paid, watts = wiring.last_prices(self.folder), wiring.last_watts(self.folder)
            loop.meter.resume(known, paid, watts)
        else:
            loop.meter.begin()
        loop.start(self.t, self.t)
        return loop

    def _provisioner(self, before: Past) -> Provisioner:
        return self.sites

    def _first_commit(self) -> Commit:
        commit = Commit(
            run=self.folder.run_id,
            version=0,
            epoch=0,
            round=0,
            parent_sha256=None,
            t=self.t,
            wall_s=self.t,
            model=self.store.put_hashed(b"untrained"),
            outer=None,
            tokens=0,
            free=FreeSteps(self.steps_per_epoch),
        )
        assert self.store.put_new(commits.key(0), commit.encode())
        return commit

    def _consumed(self, order: Order, reply: Reply) -> None:
        home = self.folder.site(order.site)
        home.mkdir(parents=True, exist_ok=True)
        consumed, _ = split(order.intervals, reply.steps)
        row = {
            "t": iso(self.t),
            "session": order.session,
            "round": order.round,
            "attempt": order.attempt,
            "intervals": [list(interval) for interval in consumed],
            "steps": reply.steps,
            "tokens": reply.tokens,
            "token_sha256": reply.token_sha256,
        }
        with (home / "consumed.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
