"""Makes run folders without running anything: small, complete, consistent, the same every time.

A minute is one tick: readings arrive, windows open and close by the real policy, sites follow, and
rounds lease, train, answer and commit. What is written obeys every rule that `verify` checks, so a
test alters one thing and expects one complaint. Nothing here needs torch, Flower or Redis.

    folder = make_run(tmp_path / "demo-1")
    folder = make_run(tmp_path / "demo-2", Spec(ended=False, minutes=120))
"""

import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uncurtail.core import events as ev
from uncurtail.core.commit import Accepted, Commit, key
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.leases import FreeSteps, Interval, count_steps, split
from uncurtail.core.ledger import Ledger, Segment
from uncurtail.core.orders import StepReport
from uncurtail.core.policy import PolicySection, Threshold, window
from uncurtail.core.signals import Reading
from uncurtail.runfolder import Journal, RunFolder

WALL_START = 1_790_000_000.0
READING_EVERY_MIN = 5
MERGE_MIN = 2  # from the close of a round to its commit
DRAIN_MIN = 1


@dataclass(frozen=True)
class SiteSpec:
    """A site: its intensity (gCO2/kWh) is linear between `anchors` of (minute, value).

    `unknown` are stretches [from, to) in minutes whose readings have no value; `step_min` is how
    long a step takes.
    """

    name: str
    anchors: tuple[tuple[float, float], ...]
    unknown: tuple[tuple[float, float], ...] = ()
    step_min: int = 1
    section: SiteSection = field(
        default_factory=lambda: SiteSection.model_validate({"preset": "solar", "provision_s": 600})
    )

    def intensity(self, minute: float) -> float | None:
        """The reading at a minute of the run."""
        if any(start <= minute < stop for start, stop in self.unknown):
            return None
        points = self.anchors
        if minute <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in itertools.pairwise(points):
            if minute <= right:
                return round(low + (high - low) * (minute - left) / (right - left), 1)
        return points[-1][1]


# Windows: solar 0:30-2:10; duck 1:20-2:15 and 2:45-4:00, with a spike between that ends a round
# without an update; windy from 3:35 on, with ten minutes in which nobody knows.
_DUCK_MORNING = ((0, 500), (60, 300), (80, 60), (125, 40), (140, 260), (150, 240), (165, 70))
SITES = (
    SiteSpec("solar", ((0, 380), (30, 90), (60, 0), (110, 20), (130, 150), (200, 420), (360, 450))),
    SiteSpec("duck", (*_DUCK_MORNING, (225, 50), (240, 130), (300, 480), (360, 520)), step_min=2),
    SiteSpec(
        "windy",
        ((0, 310), (90, 350), (180, 260), (215, 80), (260, 10), (330, 40), (360, 60)),
        unknown=((275, 285),),
    ),
)


@dataclass(frozen=True)
class Spec:
    """What run to make. `lost` names (round, site) whose update is rejected as late."""

    minutes: int = 360
    sites: tuple[SiteSpec, ...] = SITES
    ended: bool = True
    lost: frozenset[tuple[int, str]] = frozenset()
    start: str = "2026-06-01T08:00:00.000+00:00"
    speed: float = 300.0
    round_min: int = 45
    max_steps: int = 100
    evaluate_every: int = 2
    steps_per_epoch: int = 120
    tokens_per_step: int = 4096
    policy: PolicySection = field(default_factory=Threshold)


@dataclass
class _Site:
    spec: SiteSpec
    reading: Reading | None = None
    open: bool = False
    phase: Phase = Phase.RELEASED
    since: float = 0.0  # of the phase
    session: int = 0
    lease: tuple[Interval, ...] = ()  # of the order that is out
    steps: int = 0


def make_run(path: Path, spec: Spec | None = None) -> RunFolder:
    """Write a run folder at `path` (its name becomes the run's) and return it."""
    maker = _Maker(RunFolder(path), spec or Spec())
    maker.run()
    return maker.folder


def token_sha256(intervals: tuple[Interval, ...]) -> str:
    """Stands for the hash of the tokens of these steps."""
    return _sha256(json.dumps(intervals).encode())


def resolved(spec: Spec, name: str) -> dict[str, Any]:
    """The resolved config of such a run, as far as a report or `verify` reads it."""
    return {
        "name": name,
        "seed": 0,
        "clock": {"start": spec.start, "speed": spec.speed},
        "run": {"duration_s": (spec.minutes - 20) * 60.0},
        "energy": {"source": "synthetic", "path": None, "allow_gaps": False, "seed": 0},
        "policy": spec.policy.model_dump(mode="json"),
        "sites": {site.name: site.section.model_dump(mode="json") for site in spec.sites},
        "rounds": {
            "length_s": spec.round_min * 60.0,
            "max_steps": spec.max_steps,
            "evaluate_every": spec.evaluate_every,
        },
        "train": {"budget_tokens": 1_000_000_000},
    }


class _Maker:
    def __init__(self, folder: RunFolder, spec: Spec) -> None:
        self.folder = folder
        self.spec = spec
        self.start = ev.unix(spec.start)
        self.counted = self.start  # up to here power is written
        self.minute = 0
        self.sites = {site.name: _Site(site) for site in spec.sites}
        self.journal = Journal(folder)
        self.ledger = Ledger(spec.policy.enter_below_g_per_kwh)
        self.free = FreeSteps(spec.steps_per_epoch)
        self.commits: list[Commit] = []
        self.round = 0
        self.open = False
        self.deadline_min = 0.0
        self.merge_min = math.inf
        self.accepted: list[Accepted] = []
        self.evaluated: set[int] = set()
        self.stopping = False
        self.trained = 0  # steps that were ever stepped, also those lost

    @property
    def t(self) -> float:
        return self.start + self.minute * 60.0

    @property
    def now(self) -> dict[str, float]:
        return {"t": self.t, "wall_s": WALL_START + self.minute * 60.0 / self.spec.speed}

    def run(self) -> None:
        body = resolved(self.spec, self.folder.run_id.rpartition("-")[0] or self.folder.run_id)
        self.folder.resolved.write_text(json.dumps(body, indent=1))
        self.folder.versions.write_text("{}")
        self.commit()
        self.emit(
            ev.CoordinatorStarted(**self.now, epoch=1, run=self.folder.run_id, version=0, tokens=0)
        )
        for minute in range(self.spec.minutes + 1):
            self.minute = minute
            if self.tick():
                break
        self.journal.close()

    def tick(self) -> bool:
        """One minute; True when the run is over."""
        if self.spec.ended and self.minute == self.spec.minutes - 20:
            self.stopping = True
            self.emit(ev.StopRequested(**self.now, reason="duration"))
        for site in self.sites.values():
            self.step(site)
            self.read(site)
            self.follow(site)
        self.advance()
        busy = self.open or any(s.phase is not Phase.RELEASED for s in self.sites.values())
        if not self.stopping or busy:
            return False
        self.cut()
        last = self.commits[-1]
        self.emit(
            ev.RunEnded(**self.now, reason="duration", version=last.version, tokens=last.tokens)
        )
        return True

    def emit(self, event: ev.Event) -> None:
        self.journal.events([event])

    # -- energy --

    def read(self, site: _Site) -> None:
        if self.minute % READING_EVERY_MIN:
            return
        self.cut()
        site.reading = Reading(site.spec.name, self.t, site.spec.intensity(self.minute))
        self.journal.reading(site.reading)
        policy = self.spec.policy
        was_open = site.open
        site.open = window(policy, site.reading, was_open=was_open, now=self.t)
        value = site.reading.value
        if site.open and not was_open:
            assert value is not None
            self.emit(ev.WindowOpened(**self.now, site=site.spec.name, intensity_g_per_kwh=value))
        elif was_open and not site.open:
            self.emit(ev.WindowClosed(**self.now, site=site.spec.name, intensity_g_per_kwh=value))

    def cut(self) -> None:
        """Write the power of all sites since the last cut, at their phases and intensities."""
        segments = [
            Segment(
                site.spec.name,
                site.phase.value,
                self.counted,
                self.t,
                site.spec.section.power_w(site.phase),
                None if site.reading is None else site.reading.value,
            )
            for site in self.sites.values()
            if self.t > self.counted
        ]
        for segment in segments:
            self.ledger.add(segment)
        self.journal.power([(segment, segment.power_w) for segment in segments])
        self.counted = self.t

    # -- sites --

    def enter(self, site: _Site, phase: Phase) -> None:
        self.cut()
        site.phase, site.since = phase, self.t
        self.emit(
            ev.SitePhase(
                **self.now,
                site=site.spec.name,
                session=site.session,
                phase=phase.value,
                power_w=site.spec.section.power_w(phase),
            )
        )

    def follow(self, site: _Site) -> None:
        wanted = site.open and not (self.stopping and not self.open)
        match site.phase:
            case Phase.RELEASED if wanted and not self.stopping:
                site.session += 1
                self.emit(ev.SiteProvisioned(**self.now, site=site.spec.name, session=site.session))
                self.enter(site, Phase.PROVISIONING)
            case Phase.PROVISIONING if not wanted:
                self.release(site)
            case Phase.PROVISIONING if self.t >= site.since + site.spec.section.provision_s:
                self.enter(site, Phase.IDLE)
            case Phase.IDLE | Phase.TRAINING if not wanted:
                self.enter(site, Phase.DRAINING)
            case Phase.DRAINING if self.t >= site.since + DRAIN_MIN * 60.0:
                self.answer(site)
                self.release(site)
            case _:
                pass

    def release(self, site: _Site) -> None:
        self.enter(site, Phase.RELEASED)
        self.emit(
            ev.SiteReleased(**self.now, site=site.spec.name, session=site.session, cause="drained")
        )

    def step(self, site: _Site) -> None:
        since_min = (self.t - site.since) / 60.0
        if site.phase is not Phase.TRAINING or since_min % site.spec.step_min:
            return
        if site.steps == count_steps(site.lease):
            return
        site.steps += 1
        self.trained += 1
        epoch, _, stop = split(site.lease, site.steps)[0][-1]
        row = StepReport(
            wall_s=self.now["wall_s"],
            site=site.spec.name,
            session=site.session,
            round=self.round,
            epoch=epoch,
            step=stop - 1,
            loss=self.loss(0.08 * math.sin(7.0 * self.trained)),
            tokens=self.spec.tokens_per_step,
        )
        self.journal.steps([(self.now["t"], row)])

    def loss(self, noise: float = 0.0) -> float:
        value = 3.2 + 4.8 * math.exp(-self.trained / 60.0) + noise
        return round(value, 5)

    # -- rounds --

    def advance(self) -> None:
        if self.minute >= self.merge_min:
            self.finish_round()
        able = [s for s in self.sites.values() if s.phase is Phase.IDLE and s.open]
        if able and not self.open and not self.stopping:
            self.round += 1
            self.open = True
            self.deadline_min = self.minute + self.spec.round_min
            self.emit(
                ev.RoundOpened(
                    **self.now,
                    round=self.round,
                    base_version=self.commits[-1].version,
                    deadline=self.start + self.deadline_min * 60.0,
                )
            )
        if not self.open or self.merge_min < math.inf:
            return
        if self.minute >= self.deadline_min or self.stopping:
            for site in self.sites.values():
                if site.phase is Phase.TRAINING:
                    self.enter(site, Phase.IDLE)
                    self.answer(site)
        else:
            for site in able:
                self.order(site)
        if not any(site.lease for site in self.sites.values()):
            self.merge_min = self.minute + MERGE_MIN

    def order(self, site: _Site) -> None:
        version = self.commits[-1].version
        if version == 0 or version % self.spec.evaluate_every == 0:
            self.evaluate(site)
        site.lease, self.free = self.free.take(self.spec.max_steps)
        site.steps = 0
        self.emit(
            ev.OrderSent(
                **self.now,
                round=self.round,
                site=site.spec.name,
                session=site.session,
                attempt=1,
                intervals=[list(interval) for interval in site.lease],
            )
        )
        self.enter(site, Phase.TRAINING)

    def answer(self, site: _Site) -> None:
        """The site's update: its consumed prefix counts, or everything is free again."""
        if not site.lease:
            return
        used, rest = split(site.lease, site.steps)
        site.lease = ()
        if not site.steps:  # an answer without a step is none, and no event
            self.free = self.free.give_back(rest)
            return
        self.consumed(site, used)
        if (self.round, site.spec.name) in self.spec.lost:
            self.free = self.free.give_back((*used, *rest))
            self.emit(
                ev.UpdateRejected(
                    **self.now,
                    round=self.round,
                    site=site.spec.name,
                    session=site.session,
                    steps=site.steps,
                    reason="late: the round is closed",
                )
            )
            return
        self.free = self.free.give_back(rest)
        update = _sha256(f"update {self.round} {site.spec.name} {site.session}".encode())
        tokens = site.steps * self.spec.tokens_per_step
        accepted = Accepted(
            site=site.spec.name,
            session=site.session,
            intervals=used,
            steps=site.steps,
            tokens=tokens,
            token_sha256=token_sha256(used),
            update_sha256=update,
            mean_loss=self.loss(),
        )
        self.accepted.append(accepted)
        self.emit(
            ev.UpdateAccepted(
                **self.now,
                round=self.round,
                site=accepted.site,
                session=accepted.session,
                steps=accepted.steps,
                tokens=accepted.tokens,
                mean_loss=accepted.mean_loss,
                sha256=update,
            )
        )

    def consumed(self, site: _Site, used: tuple[Interval, ...]) -> None:
        row = {
            "t": ev.iso(self.now["wall_s"]),  # a site knows no simulated time
            "session": site.session,
            "round": self.round,
            "attempt": 1,
            "intervals": [list(interval) for interval in used],
            "steps": site.steps,
            "tokens": site.steps * self.spec.tokens_per_step,
            "token_sha256": token_sha256(used),
        }
        folder = self.folder.site(site.spec.name)
        folder.mkdir(exist_ok=True)
        with (folder / "consumed.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def finish_round(self) -> None:
        self.open, self.merge_min = False, math.inf
        if not self.accepted:
            self.emit(ev.RoundSkipped(**self.now, round=self.round))
            return
        commit = self.commit()
        self.emit(
            ev.RoundCommitted(
                **self.now,
                round=self.round,
                version=commit.version,
                tokens=commit.tokens,
                sites=sorted({update.site for update in commit.updates}),
                sha256=commit.sha256(),
            )
        )
        up = [s for s in self.sites.values() if s.phase is Phase.IDLE]
        if self.stopping and up:
            self.evaluate(up[0])

    def evaluate(self, site: _Site) -> None:
        last = self.commits[-1]
        if last.version in self.evaluated:
            return
        self.evaluated.add(last.version)
        self.emit(
            ev.Evaluated(
                **self.now,
                version=last.version,
                tokens=last.tokens,
                site=site.spec.name,
                val_loss=self.loss(0.05),
            )
        )

    def commit(self) -> Commit:
        """Write the next version: model and outer state under their hashes, both ledgers."""
        self.cut()
        parent = self.commits[-1] if self.commits else None
        version = 0 if parent is None else parent.version + 1
        commit = Commit(
            run=self.folder.run_id,
            version=version,
            epoch=1,
            round=self.round,
            parent_sha256=None if parent is None else parent.sha256(),
            t=self.t,
            wall_s=self.now["wall_s"],
            model=self.put(f"model {version}"),
            outer=None if parent is None else self.put(f"outer {version}"),
            tokens=(0 if parent is None else parent.tokens)
            + sum(update.tokens for update in self.accepted),
            free=self.free,
            updates=tuple(self.accepted),
            ledger=self.ledger.to_json(),
            event_offset=self.journal.offset(),
        )
        (self.folder.path / key(version)).write_bytes(commit.encode())
        self.commits.append(commit)
        self.accepted = []
        return commit

    def put(self, text: str) -> str:
        """Write an object; return its key."""
        name = f"objects/{_sha256(text.encode())}"
        (self.folder.path / name).parent.mkdir(exist_ok=True)
        (self.folder.path / name).write_bytes(text.encode())
        return name


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
