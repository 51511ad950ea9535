"""Stage 3: wanted against actual: provision, drain, release.

Level-triggered: `reconcile` compares what a site should do with what is seen to exist. Calling it
again with the same arguments asks for the same things; a lost command is repaired by the next call.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from uncurtail.core.capacity import admitted
from uncurtail.core.clouds import (
    ExalsiusSection,
    ExalsiusSite,
    FleetKind,
    KubernetesSection,
    KubernetesSite,
)
from uncurtail.core.events import Event, SitePhase, SiteProvisioned, SiteReleased
from uncurtail.core.ledger import Ledger
from uncurtail.core.measured import PowerFrom
from uncurtail.core.microgrid import MicrogridSection
from uncurtail.core.nodes import RemoteSection
from uncurtail.core.policy import Capped, Costs, Verdict
from uncurtail.core.section import Section


class Phase(StrEnum):
    """What a site is doing, as far as its power is concerned."""

    RELEASED = "released"
    PROVISIONING = "provisioning"
    IDLE = "idle"
    TRAINING = "training"
    CAPPED = "capped"  # training at less power, and slower
    DRAINING = "draining"  # finishing its step
    RELEASING = "releasing"  # has stopped computing: hands in its work, and goes


# What a released site is started for.
STARTS = (Verdict.TRAIN, Verdict.CAPPED, Verdict.READY)


class SiteSection(Section):
    """One GPU site: where it is, what it draws, what it computes with."""

    # Where the intensity comes from: a column of the trace, or a synthetic grid.
    region: str | None = None
    preset: str | None = None
    utc_offset_h: float = Field(default=0.0, ge=-12, le=14, multiple_of=0.25)
    seed: int | None = Field(default=None, ge=0)  # of its weather; unset: energy.seed
    provision_s: float = Field(default=300.0, ge=0)
    idle_power_w: float = Field(default=468.0, ge=0)  # the paper's 4xA100 node
    train_power_w: float = Field(default=2024.0, ge=0)
    provision_power_w: float | None = Field(default=None, ge=0)  # unset: idle_power_w
    # Capped operation: what it draws then, and the share of its training speed that is left. Both
    # to be measured, at `capped_gpu_limit_w` for each of its GPUs. Without that limit, or where
    # the driver refuses it, the trainer pauses between steps until its speed is that share.
    capped_power_w: float | None = Field(default=None, gt=0)
    capped_speed: float | None = Field(default=None, gt=0, le=1)
    capped_gpu_limit_w: float | None = Field(default=None, gt=0)
    price_eur_per_kwh: float | None = Field(default=None, ge=0)
    # What counts: these watts, or what is measured where there is a fresh value. "nvml" (its GPUs
    # alone) and "rapl" (processors and memory of the whole machine) are read at the site, while
    # Prometheus is asked for power_query (W). power_beside_w is what they do not see.
    power_from: PowerFrom = "model"
    power_query: str | None = None
    power_beside_w: float = Field(default=0.0, ge=0)
    threads: int = Field(default=1, ge=1)  # of all its ranks together
    ranks: int = Field(default=1, ge=1)  # processes that share each step; one for each GPU
    microgrid: MicrogridSection | None = None  # a battery, solar panels; unset: the grid alone
    kind: FleetKind | None = None  # where it runs; unset: fleet.kind
    # Of a site that runs here: its GPU slot, and the CPUs that it keeps to. Unset: CPU; any CPU.
    cuda_devices: str | None = None  # "0,1"
    cpus: str | None = None  # "0-15,32"
    exalsius: ExalsiusSite = ExalsiusSite()
    kubernetes: KubernetesSite = KubernetesSite()

    @model_validator(mode="after")
    def _capped_operation_is_whole(self) -> Self:
        if (self.capped_power_w is None) != (self.capped_speed is None):
            raise ValueError("capped_power_w and capped_speed go together: give both, or neither")
        if self.capped_power_w is not None and self.capped_power_w > self.train_power_w:
            raise ValueError("capped_power_w is above train_power_w: a cap draws less")
        if self.capped_gpu_limit_w is not None and None in (self.capped_power_w, self.cuda_devices):
            raise ValueError("capped_gpu_limit_w needs capped_power_w, and GPUs in cuda_devices")
        return self

    def power_w(self, phase: Phase) -> float:
        """Watts drawn in a phase; a draining site still finishes its step, at full power."""
        match phase:
            case Phase.RELEASED:
                return 0.0
            case Phase.PROVISIONING:
                return (
                    self.idle_power_w if self.provision_power_w is None else self.provision_power_w
                )
            case Phase.IDLE | Phase.RELEASING:
                return self.idle_power_w
            case Phase.TRAINING | Phase.DRAINING:
                return self.train_power_w
            case Phase.CAPPED:
                capped_w = self.capped_power_w
                return self.train_power_w if capped_w is None else capped_w

    def costs(self) -> Costs:
        """What policies weigh."""
        power_w, speed = self.capped_power_w, self.capped_speed
        return Costs(
            self.train_power_w,
            self.idle_power_w,
            self.power_w(Phase.PROVISIONING),
            self.provision_s,
            None if power_w is None or speed is None else Capped(power_w, speed),
        )


class FleetSection(Section):
    """How sites are started, and how long each stage may take by the wall clock."""

    kind: FleetKind = "processes"
    # So many sites may be up at once, in `run` and in `plan`; unset: all.
    max_sites: int | None = Field(default=None, ge=1)
    # A start needs torch, a key, a SuperNode: about 6 s on a laptop, minutes on a cloud.
    provision_timeout_wall_s: float = Field(default=300.0, gt=0)
    # A drain is one step, one upload, one Flower reply.
    drain_timeout_wall_s: float = Field(default=30.0, gt=0)
    # How long a site that goes may write its optimizer state, at idle power: 2.9 GB at depth 20.
    snapshot_timeout_wall_s: float = Field(default=120.0, ge=0)
    # A site without a coordinator finishes, snapshots and exits.
    orphan_after_wall_s: float = Field(default=60.0, gt=0)
    max_retry_wall_s: float = Field(default=60.0, gt=0)
    # Four measurements of a site that were missed, or two of Prometheus every 30 s.
    power_stale_after_wall_s: float = Field(default=60.0, gt=0)
    remote: RemoteSection = RemoteSection()
    exalsius: ExalsiusSection = ExalsiusSection()
    kubernetes: KubernetesSection = KubernetesSection()


@dataclass(frozen=True, slots=True)
class SiteState:
    """What the coordinator believes about a site. `session` is the last one ever started."""

    phase: Phase = Phase.RELEASED
    session: int = 0
    since: float = 0.0  # simulated
    since_wall: float = 0.0
    up_since: float | None = None  # simulated; when this session was asked for
    failures: int = 0
    retry_wall: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of a site now: living sessions, and the state of the believed one.

    `busy`: an order is out whose answer may still come. `capped`: it keeps to its capped power.
    `mute`: it is up, and nothing has come of it for round after round.
    """

    sessions: frozenset[int] = field(default_factory=frozenset)
    ready: bool = False
    stepping: bool = False
    busy: bool = False
    capped: bool = False
    mute: bool = False


@dataclass(frozen=True, slots=True)
class Provision:
    """Start this session of the site."""

    site: str
    session: int


@dataclass(frozen=True, slots=True)
class Release:
    """End this session of the site and everything that belongs to it."""

    site: str
    session: int


Action = Provision | Release


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one reconciliation. `released_as` names why a session ended, if one did."""

    state: SiteState
    actions: tuple[Action, ...] = ()
    released_as: str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """What reconciling a site needs to know of it."""

    name: str
    provision_s: float  # simulated; a start takes at least this
    timeouts: FleetSection


def reconcile(
    site: Site, state: SiteState, verdict: Verdict, seen: Seen, now: tuple[float, float]
) -> Step:
    """Move one site one step towards its verdict.

    Args:
        site: Which, and how patient to be with it.
        state: What is believed.
        verdict: What is wanted.
        seen: What exists.
        now: (simulated unix seconds, wall unix seconds).

    Returns:
        The new belief, the actions that close the gap (repeated until seen done), and how a
        session ended if it did.
    """
    strays = tuple(Release(site.name, s) for s in sorted(seen.sessions) if s != state.session)
    step = _own_session(site, state, verdict, seen, now)
    return replace(step, actions=strays + step.actions) if strays else step


def _own_session(
    site: Site, state: SiteState, verdict: Verdict, seen: Seen, now: tuple[float, float]
) -> Step:
    alive = state.session in seen.sessions
    match state.phase:
        case Phase.RELEASED:
            return _released(site, state, verdict, seen, now)
        case Phase.PROVISIONING:
            return _provisioning(site, state, verdict, seen, now)
        case Phase.IDLE | Phase.TRAINING | Phase.CAPPED:
            if not alive:
                return Step(_ended(site, state, now, failed=True), released_as="lost")
            if seen.mute and not seen.stepping:
                return Step(_enter(state, Phase.RELEASING, now))
            if verdict is Verdict.REST:
                return _draining(site, state, seen, now)
            works = Phase.CAPPED if seen.capped else Phase.TRAINING
            return Step(_enter(state, works if seen.stepping else Phase.IDLE, now))
        case Phase.DRAINING:
            if not alive:
                return Step(_ended(site, state, now, failed=False), released_as="drained")
            return _draining(site, state, seen, now)
        case Phase.RELEASING:
            return _releasing(site, state, seen, now)


def _draining(site: Site, state: SiteState, seen: Seen, now: tuple[float, float]) -> Step:
    """It finishes its step; then nothing keeps it but the answer that is still to come."""
    draining = _enter(state, Phase.DRAINING, now)
    late = now[1] - draining.since_wall > site.timeouts.drain_timeout_wall_s
    if seen.stepping and not late:
        return Step(draining)
    return Step(_enter(state, Phase.RELEASING, now))


def _releasing(site: Site, state: SiteState, seen: Seen, now: tuple[float, float]) -> Step:
    if state.session not in seen.sessions:
        cause = "lost" if seen.mute else "drained"
        return Step(_ended(site, state, now, failed=seen.mute), released_as=cause)
    patient = now[1] - state.since_wall <= site.timeouts.drain_timeout_wall_s
    if seen.busy and patient and not seen.mute:
        return Step(state)
    return Step(state, (Release(site.name, state.session),))


def _released(
    site: Site, state: SiteState, verdict: Verdict, seen: Seen, now: tuple[float, float]
) -> Step:
    if state.session in seen.sessions:  # released by belief, still there: say it again
        return Step(state, (Release(site.name, state.session),))
    if verdict not in STARTS or not can_start(state, seen.sessions, now[1]):
        return Step(state)
    started = _enter(
        replace(state, session=state.session + 1, up_since=now[0]), Phase.PROVISIONING, now
    )
    return Step(started, (Provision(site.name, started.session),))


def can_start(state: SiteState, sessions: frozenset[int], wall_s: float) -> bool:
    """Whether a site could be started now, were it wanted.

    A stray goes first: it may hold the GPU that a new session needs.
    """
    return state.phase is Phase.RELEASED and not sessions and wall_s >= state.retry_wall


def kept_out(
    wanted: Mapping[str, tuple[Verdict, float | None]],
    states: Mapping[str, SiteState],
    alive: Mapping[str, frozenset[int]],
    cap: tuple[int | None, float],
) -> frozenset[str]:
    """The sites that want to start, and must wait until another is gone.

    Args:
        wanted: What each site should do, and its usable intensity (g/kWh).
        states: What is believed of each.
        alive: The sessions that exist; one that lingers on takes a place.
        cap: (how many may be up, None for all; wall unix seconds).
    """
    max_sites, wall_s = cap
    nothing: frozenset[int] = frozenset()
    wanting = {
        site: value
        for site, (verdict, value) in wanted.items()
        if verdict in STARTS and can_start(states[site], alive.get(site, nothing), wall_s)
    }
    num_up = sum(
        state.phase is not Phase.RELEASED or bool(alive.get(site)) for site, state in states.items()
    )
    return frozenset(wanting) - admitted(wanting, num_up, max_sites)


def _provisioning(
    site: Site, state: SiteState, verdict: Verdict, seen: Seen, now: tuple[float, float]
) -> Step:
    release = Release(site.name, state.session)
    if state.session not in seen.sessions:
        return Step(_ended(site, state, now, failed=True), released_as="failed")
    if verdict is Verdict.REST:  # nothing to drain yet
        return Step(_enter(state, Phase.RELEASING, now))
    if seen.ready and now[0] >= state.since + site.provision_s:
        return Step(replace(_enter(state, Phase.IDLE, now), failures=0))
    if now[1] - state.since_wall > site.timeouts.provision_timeout_wall_s:
        return Step(state, (release,))
    return Step(state, (Provision(site.name, state.session),))


def _enter(state: SiteState, phase: Phase, now: tuple[float, float]) -> SiteState:
    if phase is state.phase:
        return state
    return replace(state, phase=phase, since=now[0], since_wall=now[1])


def _ended(site: Site, state: SiteState, now: tuple[float, float], *, failed: bool) -> SiteState:
    failures = state.failures + 1 if failed else 0
    # 2^30 s is beyond any bound; a float ends at 2^1023, which a site down for a day would reach.
    doubled_s = 2.0 ** min(failures - 1, 30)
    wait_s = min(doubled_s, site.timeouts.max_retry_wall_s) if failed else 0.0
    return replace(
        _enter(state, Phase.RELEASED, now),
        up_since=None,
        failures=failures,
        retry_wall=now[1] + wait_s,
    )


def worked_s(ledger: Ledger, speeds: Mapping[str, float | None], site: str | None = None) -> float:
    """Training in seconds of a site at full power: a capped second counts by the site's speed.

    `speeds` are the sites' `capped_speed`; `site` None: the sum over all sites.
    """
    total_s = ledger.total(site=site, phase=Phase.TRAINING).duration_s
    for name, speed in speeds.items():
        if speed is not None and site in (None, name):
            total_s += speed * ledger.total(site=name, phase=Phase.CAPPED).duration_s
    return total_s


def replay(sites: Iterable[str], events: Iterable[Event]) -> dict[str, SiteState]:
    """What the last coordinator believed, from the events it left: where a new one starts."""
    states = {site: SiteState() for site in sites}
    for event in events:
        match event:
            case SiteProvisioned(site=site, session=session) if site in states:
                states[site] = replace(states[site], session=session, up_since=event.t)
            case SitePhase(site=site, phase=phase) if site in states:
                states[site] = _enter(states[site], Phase(phase), (event.t, event.wall_s))
            case SiteReleased(site=site, session=session) if site in states:
                if session == states[site].session:
                    states[site] = replace(states[site], up_since=None)
            case _:
                pass
    return states


def living(states: Mapping[str, SiteState]) -> list[tuple[str, int]]:
    """The sessions that are believed to exist."""
    return [(n, s.session) for n, s in states.items() if s.phase is not Phase.RELEASED]
