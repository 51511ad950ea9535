"""`uncurtail run`: starts every process of a run, keeps them alive, shows progress, cleans up.

It decides nothing about training. Redis, SuperLink and SuperExec are its children and are started
again when they die; the coordinator (our ServerApp, started by SuperExec) is resubmitted from the
last commit. Or the coordinator was there first, and this is its child (`hosting.py`). Whatever
carries the run's mark is gone when this returns.
"""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from uncurtail.adapters import certificates, children, clock, gpu_limits
from uncurtail.adapters.flower_commands import Flower
from uncurtail.adapters.redis import reachable
from uncurtail.adapters.redis_server import EmbeddedRedis, free_port, plan_embedded
from uncurtail.config import Config, ConfigError
from uncurtail.core.events import RunEnded
from uncurtail.core.section import place
from uncurtail.errors import UserError
from uncurtail.listening import listens
from uncurtail.monitor import Monitor
from uncurtail.provisioning import release_wall_s
from uncurtail.runfolder import COORDINATOR, RUN_DIR, SUPERVISOR, RunFolder
from uncurtail.tracking import Trackers, kinds
from uncurtail.wiring import REDIS_URL, Endpoints, secret

LOOK_EVERY_S = 0.2
# Ctrl-C drains: a step, an upload, a Flower reply, a commit, and what machines elsewhere take to be
# gone. Then the hard way.
DRAIN_S = 14.0
START_TIMEOUT_S = 120.0
# SuperExec asks for tasks ten times a second; a loaded machine takes its time.
PICK_UP_S = 20.0
# What has lived for so long is no failed start: its next death is a new trouble.
STEADY_S = 120.0


SUPEREXEC_SECRET = "UNCURTAIL_SUPEREXEC_SECRET"


def saving_s(config: Config, folder: RunFolder) -> float:
    """What a run that drains may take longer because a trainer is writing its snapshot."""
    saving = any(folder.unfinished_snapshot(site).exists() for site in config.sites)
    return config.fleet.snapshot_timeout_wall_s if saving else 0.0


class RunFailedError(UserError):
    """The run cannot go on: one line that says what failed, and where to look."""


@dataclass(slots=True)
class Backoff:
    """When to start again what keeps dying: at once, then after 1, 2, 4, ... 30 s."""

    failures: int = 0
    started_at: float = -math.inf

    def due(self, now: float) -> bool:
        """Whether to start it now, at monotonic time `now`; if so, it counts as started."""
        if now - self.started_at > STEADY_S:
            self.failures = 0
        wait_s = 0.0 if self.failures == 0 else min(2.0 ** (self.failures - 1), 30.0)
        if now - self.started_at < wait_s:
            return False
        self.failures += 1
        self.started_at = now
        return True


@dataclass(slots=True)
class Supervisor:
    """The processes of one run, and how often the coordinator had to be started."""

    config: Config
    folder: RunFolder
    monitor: Monitor
    endpoints: Endpoints
    flower: Flower
    redis: EmbeddedRedis | None
    # Our parent, where that is a ServerApp and coordinates; None: one is submitted from here.
    coordinator: int | None = None
    procs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    submissions: int = 0  # of the coordinator, since it last lived for a while
    submitted: bool = False
    retry_at: float = 0.0
    submitted_at: float = 0.0
    revived: dict[str, Backoff] = field(default_factory=dict)
    stop_at: float | None = None
    drain_s: float = field(init=False)
    trackers: Trackers = field(init=False)

    def __post_init__(self) -> None:
        self.drain_s = DRAIN_S + release_wall_s(self.config)
        self.trackers = Trackers(
            self.folder, kinds(self.config.tracking), self.procs, self.monitor.say
        )

    def run(self) -> RunEnded | None:
        """Start everything and supervise until the run ends; None if it was stopped before that.

        Whatever happens, nothing of the run is left when this returns.

        Raises:
            RunFailedError: A process does not come up, or cannot be kept alive.
        """
        previous = [
            signal.signal(number, self._asked_to_stop) for number in (signal.SIGINT, signal.SIGTERM)
        ]
        try:
            self.start()
            while self.stop_at is None or self._coordinated:
                self._keep_alive()
                for event in self.monitor.poll():
                    if isinstance(event, RunEnded):
                        self.trackers.finish()
                        return event
                if self._waited_enough() or self._coordinator_is_gone():
                    return None
                clock.pause(LOOK_EVERY_S)
            return None
        finally:
            signal.signal(signal.SIGINT, previous[0])
            signal.signal(signal.SIGTERM, previous[1])
            self._end()

    def start(self) -> None:
        """Start the planes, in the order in which they need each other.

        Raises:
            RunFailedError: One does not come up; its log is named.
        """
        if self.redis is not None:
            self._start_redis()
        self._await("redis", lambda: reachable(self.endpoints.redis_url) is None)
        if not self._shared_superlink:
            self._start_superlink()
        self._await("superlink", self._superlink_listens)

    def _keep_alive(self) -> None:
        children.reap([*self.procs.values()])
        if self.redis is not None:
            self._revive("redis", self._start_redis)
        if not self._shared_superlink:
            self._revive("superlink", self._start_superlink)
        if self.config.gate.address is not None:
            self._revive("gate", lambda: self._spawn("gate", gate_command(self.folder)))
        if self.coordinator is None:
            if self._superlink_listens():
                self._revive("superexec", lambda: self._spawn("superexec", self.flower.superexec()))
            self._keep_coordinator()
        self.trackers.keep_alive()

    def _keep_coordinator(self) -> None:
        """Submit the app when nobody coordinates and nobody is about to."""
        now = clock.monotonic()
        submitting = self.procs.get("submit")
        if submitting is not None and submitting.poll() is None:
            return
        if self._coordinator_alive():
            if now - self.submitted_at > STEADY_S:
                self.submissions = 0  # what failed before that is over
            return
        # Accepted, and SuperExec looks for it; or its process is there and still at its imports.
        patience_s = START_TIMEOUT_S if self._coordinator_starts() else PICK_UP_S
        accepted = submitting is not None and submitting.returncode == 0
        if accepted and not self._introduced() and now < self.submitted_at + patience_s:
            return
        if now < self.retry_at or self._dead("superexec"):
            return
        if self.submissions > self.config.flower.restarts:
            superexec = self.revived.get("superexec", Backoff())
            why = f": {self._keeps_ending('superexec')}" if superexec.failures > 1 else ""
            raise RunFailedError(
                f"the coordinator failed {self.submissions} times{why}: see {self.folder.logs}"
            )
        self.submissions += 1
        self.submitted = True
        self.submitted_at = now
        self.retry_at = now + min(2.0**self.submissions, 30.0)
        (self.folder.private / COORDINATOR).unlink(missing_ok=True)
        self._spawn("submit", self.flower.run())

    @property
    def _coordinated(self) -> bool:
        """Whether there may be a coordinator, who can drain."""
        return self.submitted or self.coordinator is not None

    def _coordinator_is_gone(self) -> bool:
        return self.coordinator is not None and not children.has_parent(self.coordinator)

    def _revive(self, role: str, start: Callable[[], None]) -> None:
        """Start what is dead, ever later while it dies young, and never give up on it."""
        if not self._dead(role):
            return
        backoff = self.revived.setdefault(role, Backoff())
        if backoff.due(clock.monotonic()):
            if backoff.failures == 2:  # it ended soon after its start
                self.monitor.say(f"{self._keeps_ending(role)} (see {self.folder.logs}/{role}.log)")
            start()

    def _keeps_ending(self, role: str) -> str:
        """What is wrong where a process ends soon after each start."""
        if role == "superexec" and self._shared_superlink:  # where it is refused it does not say so
            return (
                f"the SuperExec at {self.config.flower.superlink} keeps ending: if that SuperLink "
                f"has a secret for it, set {SUPEREXEC_SECRET} or {SUPEREXEC_SECRET}_FILE"
            )
        return f"{role} keeps ending"

    def _introduced(self) -> bool:
        return (self.folder.private / COORDINATOR).exists()

    def _coordinator_starts(self) -> bool:
        superexec = self.procs.get("superexec")
        return superexec is not None and children.has_child(superexec.pid)

    def _coordinator_alive(self) -> bool:
        return children.introduced(self.folder.private / COORDINATOR) is not None

    def _start_redis(self) -> None:
        assert self.redis is not None
        log = self.folder.logs / "redis.log"
        self.procs["redis"] = self.redis.start(self.folder.run_id, self.folder.private, log)

    @property
    def _shared_superlink(self) -> bool:
        return self.config.flower.superlink is not None

    def _superlink_listens(self) -> bool:
        return listens(self.flower.port, self.flower.host)

    def _start_superlink(self) -> None:
        self._spawn("superlink", self.flower.superlink())

    def _spawn(self, role: str, command: list[str]) -> None:
        marks = {
            children.RUN: self.folder.run_id,
            children.ROLE: role,
            RUN_DIR: str(self.folder.path),
            **self.flower.environment(),
        }
        self.procs[role] = children.spawn(
            command, marks=marks, log=self.folder.logs / f"{role}.log", dies_with_parent=True
        )

    def _dead(self, role: str) -> bool:
        child = self.procs.get(role)
        return child is None or child.poll() is not None

    def _await(self, role: str, ready: Callable[[], bool]) -> None:
        give_up = clock.monotonic() + START_TIMEOUT_S
        while not ready() and self.stop_at is None:
            child = self.procs.get(role)
            ended = child is not None and child.poll() is not None
            if ended or clock.monotonic() > give_up:
                log = self.folder.logs / f"{role}.log"
                raise RunFailedError(f"{role} did not start: {_last_line(log)} (see {log})")
            clock.pause(0.05)

    def _asked_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop_at is not None:  # the second Ctrl-C: now
            self.stop_at = float("-inf")
            return
        self.stop_at = clock.monotonic()
        (self.folder.private / "stop").touch()
        self.monitor.say("Stopping: sites finish their step and hand in their work.")

    def _waited_enough(self) -> bool:
        """Whether what was asked to stop has had its time; sites that save have more."""
        if self.stop_at is None:
            return False
        more_s = saving_s(self.config, self.folder)
        return clock.monotonic() > self.stop_at + self.drain_s + more_s

    def _end(self) -> None:
        for child in self.procs.values():
            if child.poll() is None:
                child.terminate()
        deadline = clock.monotonic() + 1.5
        while clock.monotonic() < deadline and not all(
            c.poll() is not None for c in self.procs.values()
        ):
            clock.pause(0.05)
        children.kill_marked(self.folder.run_id)
        for site in self.config.sites:
            why = gpu_limits.restore(self.folder.site(site) / gpu_limits.RECORD)
            if why is not None:
                self.monitor.say(f"{site}: its GPUs keep the power limit of capped training: {why}")
        for child in self.procs.values():
            child.wait()
        children.reap([])


def prepare(
    config: Config, folder: RunFolder, monitor: Monitor, data: str, coordinator: int | None = None
) -> Supervisor:
    """Make a run folder ready to be started, fresh or again; end what a killed run left.

    With `coordinator`, our parent is a ServerApp and coordinates; its SuperLink is another's.

    Raises:
        ConfigError: The run is running, processes cannot be ended, or the state server cannot be
            used.
    """
    other = children.introduced(folder.private / SUPERVISOR)
    if other not in (None, os.getpid()):
        raise ConfigError(
            f"{folder.run_id} is running (process {other}): stop that first, with Ctrl-C or "
            f"kill -INT {other}"
        )
    children.become_subreaper()
    os.umask(0o077)  # what a run writes is this user's alone
    left = children.kill_marked(folder.run_id)
    if left:
        raise ConfigError(f"{left} processes of {folder.run_id} cannot be ended: end them first")
    private = folder.private
    for name in ("stop", COORDINATOR):
        (private / name).unlink(missing_ok=True)
    if config.flower.superlink is None:  # another's still knows the sessions that live on
        for stale in (*private.glob("superlink.db*"), *private.glob("registered/*")):
            stale.unlink()
    redis = plan_embedded() if secret(REDIS_URL) is None else None
    url = redis.url if redis is not None else secret(REDIS_URL) or ""
    if redis is None and (why := reachable(url)) is not None:
        raise ConfigError(f"{REDIS_URL} does not answer ({why}): start it, or unset the variable")
    host, port = _superlink_of(config, private)
    endpoints = Endpoints(flower_port=port, redis_url=url, data=data, flower_host=host)
    endpoints.save(folder)
    flower = Flower(private, port, host)
    write_credentials(config, folder, flower)
    flower.write_home()
    children.introduce(private / SUPERVISOR)
    return Supervisor(config, folder, monitor, endpoints, flower, redis, coordinator)


def write_credentials(config: Config, folder: RunFolder, flower: Flower) -> None:
    """Write what proves who is who; what lets a machine in still does after a resume."""
    gate = config.gate.address
    gate_host = None if gate is None else place(gate)[0]
    certificates.keep_server_certificates(flower.certificates, gate_host)
    certificates.keep_secret(folder.gate_secret)
    certificates.write_secret(flower.secret)


def _superlink_of(config: Config, private: Path) -> tuple[str, int]:
    """Where SuperLink is, or will be; what one that is there already is known by is kept.

    Raises:
        ConfigError: Its authority's certificate cannot be read.
    """
    flower = Flower(private, 0)
    theirs = private / "superlink-ca.crt"
    for stale in (theirs, flower.superlink_secret):
        stale.unlink(missing_ok=True)
    if config.flower.superlink is None:
        return "127.0.0.1", config.flower.port or free_port()
    assert config.flower.superlink_ca is not None
    try:
        theirs.write_bytes(config.flower.superlink_ca.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"flower.superlink_ca: {config.flower.superlink_ca}: {error.strerror}: name the "
            "certificate of its authority"
        ) from None
    known = secret(SUPEREXEC_SECRET)
    if known is not None:
        flower.superlink_secret.touch(mode=0o600)
        flower.superlink_secret.write_text(known, encoding="utf-8")
    return place(config.flower.superlink)


def gate_command(folder: RunFolder) -> list[str]:
    """How the gate is started."""
    return [sys.executable, "-m", "uncurtail", "gate", str(folder.path)]


def _last_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        return "it wrote nothing"
    return lines[-1][:200] if lines else "it wrote nothing"
