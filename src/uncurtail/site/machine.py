"""This machine as one site of a run: its folder, and the session that it runs.

All that it needs comes through the run's gate. It makes a folder like the run's own, with its
site's part alone, and runs in it what a local provisioner would have started. Keys are made here
and never leave.
"""

import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from uncurtail import config as configuration
from uncurtail.adapters import certificates, children, clock, gpu_limits
from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.gate_client import LockedOutError, NotWantedError
from uncurtail.adapters.gate_pass import END_WALL_S, PASS_FILE, Pass
from uncurtail.adapters.processes import leader_command, leader_marks
from uncurtail.config import Config
from uncurtail.core.orders import Wanted
from uncurtail.core.rounds import member
from uncurtail.core.section import place
from uncurtail.errors import UserError
from uncurtail.lm.manifest import MANIFEST_FILE, TOKENIZER_FILE
from uncurtail.runfolder import RunFolder
from uncurtail.wiring import Endpoints

log = logging.getLogger("uncurtail.join")

ASK_EVERY_WALL_S = 1.0

# How far from its own time Flower 1.41 believes a signature.
AHEAD_WALL_S, BEHIND_WALL_S = 5.0, 305.0
MACHINE = "machine.json"  # in private/: which process is this machine

T = TypeVar("T")


class Ended(Exception):  # noqa: N818 - not an error: somebody asked us to end
    """Somebody asked this machine to end."""


class Door(Protocol):
    """The run's gate, as far as a machine itself goes through it; see `gate_client.Gate`."""

    def welcome(self) -> dict[str, Any]:
        """What a site has to know of the run."""
        ...

    def wanted(self) -> Wanted | None:
        """Which session should be up; None while nobody says."""
        ...

    def register(self, session: int, public_key: str) -> None:
        """Make a session's key known to Flower."""
        ...

    def fetch(self, path: str, place: Path) -> None:
        """Download `data/NAME` or `snapshot/NAME` into a file, whole or not at all."""
        ...


@dataclass(slots=True)
class Machine:
    """This machine, its folder, and the session that it runs."""

    leave: Pass
    gate: Door
    home: Path
    command: Callable[[Path, str, int], list[str]] = leader_command
    ask_every_wall_s: float = ASK_EVERY_WALL_S
    config: Config = field(init=False)
    folder: RunFolder = field(init=False)
    leader: subprocess.Popen[bytes] | None = None
    ending: bool = False
    told: set[str] = field(default_factory=set)  # the troubles since the gate last answered

    def asked_to_end(self, _number: int, _frame: object) -> None:
        """SIGTERM or Ctrl-C: the session hands in its work; a second one does not wait for it.

        Raises:
            Ended: There is no session: whatever we are at, a download perhaps, ends here.
        """
        if self.ending:
            self._kill()
            return
        self.ending = True
        if self.leader is None or self.leader.poll() is not None:
            raise Ended

    def prepare(self) -> None:
        """Make the folder; waits for the gate, which may come after us.

        Raises:
            Ended: We were asked to end meanwhile.
            UserError: The gate does not let us in.
        """
        told = self._patiently(self._welcome)
        # One for each site: several may be on this machine.
        self.folder = RunFolder(self.home / self.leave.site / _plain(str(told["run"])))
        self.config = configuration.parse(json.loads(told["config"]), "the run's settings")
        try:
            self._make_folder(str(told["config"]))
            self._fetch_snapshot(told["snapshot"])
        except OSError as error:
            raise UserError(f"{self.folder.path}: {error.strerror}: mend that, or --home") from None
        log.info("%s of %s, in %s", self.leave.site, self.folder.run_id, self.folder.path)

    def _welcome(self) -> dict[str, Any]:
        before = clock.wall()
        told = self.gate.welcome()
        check_clock(before, told["now_wall_s"], clock.wall())
        return told

    def _make_folder(self, settings: str) -> None:
        os.umask(0o077)
        self.folder.create()
        private = self.folder.private
        other = children.introduced(private / MACHINE)
        if other not in (None, os.getpid()):
            raise UserError(
                f"process {other} is {self.leave.site} of {self.folder.run_id} already: end that "
                "first, or use another --home"
            )
        children.introduce(private / MACHINE)
        if left := self._clean():  # what a killed predecessor left
            raise UserError(f"{left} processes of an earlier session cannot be ended: end them")
        self.folder.site(self.leave.site).mkdir(parents=True, exist_ok=True)
        self.folder.resolved.write_text(settings, encoding="utf-8")
        host, port = place(self.leave.address)
        data = self.folder.path / "data"
        data.mkdir(exist_ok=True)
        Endpoints(port, "", str(data), host).save(self.folder)
        self.leave.save(private / PASS_FILE)
        tls = private / "tls"
        tls.mkdir(mode=0o700, exist_ok=True)
        (tls / "ca.crt").write_text(self.leave.authority, encoding="ascii")
        certificates.write_secret(private / "superexec.secret")
        for name in (TOKENIZER_FILE, MANIFEST_FILE):
            self._patiently(partial(self.gate.fetch, f"data/{name}", data / name))

    @property
    def _mark(self) -> str:
        """What our processes carry: not the run's mark, for the run may be on this very machine."""
        return f"{self.folder.run_id}@{self.leave.site}"

    def serve(self, only: int | None) -> int:
        """Run sessions as they are wanted; the last one's exit code.

        Raises:
            Ended: We were asked to end.
        """
        done = 0
        while True:
            session = only or self._next_session(done)
            key = self._key(session)
            if only is None and self._begun(session).exists():
                log.info("session %d was begun before this machine started: waiting", session)
                done = session
            elif self._registered(session, key, only):
                code = self._run(session, watched=only is None)
                if only is not None or self.ending:
                    return code
                done = session
            elif only is not None:
                return 1
            else:
                done = session

    def wait_for_the_end(self) -> None:
        """Do nothing any more.

        Raises:
            Ended: We were told to end.
        """
        while True:
            self._pause()

    def end(self) -> None:
        """End what is left of a session."""
        self.ending = True  # a signal from here on interrupts nothing
        if self.leader is not None:
            if self.leader.poll() is None:
                self._ask_to_end()
            self._clean()

    def _next_session(self, done: int) -> int:
        """The session that is wanted next; each is run once, for its key is used up."""
        while True:
            wanted = self._patiently(self.gate.wanted)
            if wanted is not None and wanted.up and wanted.session > done:
                return wanted.session
            self._pause()

    def _key(self, session: int) -> str:
        """The public key of a session; its private one is made here and never leaves."""
        path = self.folder.private / "keys" / member(self.leave.site, session)
        public = path.with_suffix(f"{path.suffix}.pub")
        if not public.exists():  # it is written last
            certificates.write_session_key(path)
        return public.read_text(encoding="utf-8")

    def _begun(self, session: int) -> Path:
        """A mark of a session that was started: Flower locks its key out for a minute."""
        return self.folder.private / "keys" / f"{member(self.leave.site, session)}.begun"

    def _registered(self, session: int, key: str, only: int | None) -> bool:
        """Make the session's key known; False if the session is over, or another machine's."""
        while True:
            try:
                self._patiently(partial(self.gate.register, session, key))
                return True
            except UnusableError as error:
                log.warning("%s", error)
                return False
            except NotWantedError as error:
                wanted = self._patiently(self.gate.wanted)
                if only is None or (wanted is not None and wanted.session > session):
                    log.warning("%s", error)
                    return False
                self._pause()  # this machine was made for it, and came first

    def _run(self, session: int, *, watched: bool) -> int:
        site = self.leave.site
        section = self.config.sites[site]
        self._begun(session).touch()
        self.leader = children.spawn(
            self.command(self.folder.path, site, session),
            marks=leader_marks(self._mark, site, session, section),
            log=self.folder.site(site) / "log",
            dies_with_parent=True,
        )
        log.info("session %d", session)
        while self.leader.poll() is None:
            if self.ending or (watched and not self._still_wanted(session)):
                self._ask_to_end()
                break
            children.reap([self.leader])
            clock.pause(self.ask_every_wall_s)
        code = self.leader.wait()
        self._clean()
        log.info("session %d has ended", session)
        return code

    def _clean(self) -> int:
        """What of a session lives on ends, and its GPUs are as they were; how many are left."""
        left = children.kill_marked(self._mark)
        children.reap([])
        why = gpu_limits.restore(self.folder.site(self.leave.site) / gpu_limits.RECORD)
        if why is not None:
            log.warning("the GPUs keep the power limit of capped training: %s", why)
        return left

    def _still_wanted(self, session: int) -> bool:
        """Whether nobody says otherwise; out of the gate's reach, the session goes on."""
        try:
            wanted = self.gate.wanted()
        except BlobError as error:
            self._tell(error)
            return True
        self._answered()
        return wanted is None or (wanted.up and wanted.session == session)

    def _ask_to_end(self) -> None:
        assert self.leader is not None
        self.leader.terminate()
        patience_s = END_WALL_S + self.config.fleet.snapshot_timeout_wall_s
        try:
            self.leader.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        if self.leader is not None:
            for pid in (*children.group(self.leader.pid), self.leader.pid):
                children.signal_pid(pid, signal.SIGKILL)

    def _fetch_snapshot(self, names: list[str]) -> None:
        """The site's last optimizer state, if the run has one: its index is what makes it one."""
        folder = self.folder.site(self.leave.site) / "snapshot"
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: name.endswith(".json")):
            path = folder / Path(name).name
            if path.suffix == ".json" or not path.exists():
                try:
                    self._patiently(partial(self.gate.fetch, f"snapshot/{name}", path))
                except UnusableError as error:  # another machine has handed in a newer one since
                    log.warning("%s: beginning with a fresh optimizer", error)
                    return

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until it works: the gate may be away for a while, and comes back.

        Raises:
            UserError: The gate does not know us.
            UnusableError: It answered: asking again does not help.
            NotWantedError: It answered: not now.
        """
        wait_s = self.ask_every_wall_s
        while True:
            try:
                found = call()
                self._answered()
                return found
            except (UnusableError, NotWantedError):
                raise
            except LockedOutError as error:
                raise UserError(
                    f"{error}: copy anew what uncurtail site invite prints where the run is"
                ) from None
            except BlobError as error:
                self._tell(error)
            self._pause(wait_s)
            wait_s = min(2.0 * wait_s, 30.0)

    def _tell(self, trouble: BlobError) -> None:
        """Say each trouble once: a run that has ended is asked for days."""
        _, _, why = str(trouble).partition(": ")
        if why not in self.told:
            self.told.add(why)
            log.warning("%s; asking on, quietly, until it is back or this is ended", trouble)

    def _answered(self) -> None:
        if self.told:
            log.info("the gate answers again")
            self.told.clear()

    def _pause(self, wait_s: float | None = None) -> None:
        """Wait, unless we are to end.

        Raises:
            Ended: We are.
        """
        wait_s = self.ask_every_wall_s if wait_s is None else wait_s
        give_up = clock.monotonic() + wait_s
        while clock.monotonic() < give_up:
            if self.ending:
                raise Ended
            clock.pause(min(wait_s, 0.2))


def check_clock(before: float, now: float, after: float) -> None:
    """See that Flower will believe what we sign: the run's clock said `now` between our two.

    Raises:
        UserError: It will not: this machine is surely too far ahead or behind.
    """
    if before - now > AHEAD_WALL_S or now - after > BEHIND_WALL_S:
        raise UserError(
            f"this machine's clock is {max(before - now, now - after):.0f} s "
            f"{'ahead of' if before > now else 'behind'} the run's: set it; Flower believes no "
            f"signature that is {AHEAD_WALL_S:.0f} s from the future, or "
            f"{BEHIND_WALL_S:.0f} s old"
        )


def _plain(run: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise UserError(f"the gate names its run {run[:80]!r}: that is no name of a run")
    return run
