"""A machine elsewhere as a site of a run: all that it needs comes through the run's gate.

It makes a folder like the run's own, with its site's part alone, and runs in it what a local
provisioner would have started. Keys are made here and never leave.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from uncurtail import config as configuration
from uncurtail.adapters import certificates, children, clock
from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.gate_client import Gate
from uncurtail.adapters.gate_pass import PASS_FILE, Pass
from uncurtail.adapters.processes import leader_marks
from uncurtail.config import Config, place
from uncurtail.core.rounds import member
from uncurtail.errors import UserError
from uncurtail.lm.manifest import MANIFEST_FILE, TOKENIZER_FILE
from uncurtail.lm.prepare import cache_folder
from uncurtail.runfolder import RunFolder
from uncurtail.wiring import Endpoints

log = logging.getLogger("uncurtail.join")

ASK_EVERY_WALL_S = 1.0
# A session that was told to end hands in its work; the snapshot has a time of its own.
END_WALL_S = 20.0

T = TypeVar("T")


def join_run(home: Path | None) -> int:
    """Be the site that the environment names until its run ends or wants it no more.

    With UNCURTAIL_SESSION for that session alone, as on a machine that was made for it; without,
    for each session that the run wants here, one after the other. Returns 0 when told to end.

    Raises:
        UserError: The environment is incomplete, or the gate does not let us in.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    site = os.environ.get(children.SITE)
    if not site:
        raise UserError(
            f"{children.SITE} is not set: copy what uncurtail site invite RUN SITE prints"
        )
    leave = Pass.of(site, os.environ)
    only = os.environ.get(children.SESSION)
    machine = Machine(leave, Gate(leave), home or cache_folder() / "sites")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, machine.asked_to_end)
    try:
        machine.prepare()
        return machine.serve(None if only is None else int(only))
    except Ended:
        return 0
    finally:
        machine.end()


class Ended(Exception):  # noqa: N818 - not an error: somebody asked us to end
    """Somebody asked this machine to end."""


@dataclass(slots=True)
class Machine:
    """This machine, its folder, and the session that it runs."""

    leave: Pass
    gate: Gate
    home: Path
    config: Config = field(init=False)
    folder: RunFolder = field(init=False)
    leader: subprocess.Popen[bytes] | None = None
    ending: bool = False

    def asked_to_end(self, _number: int, _frame: object) -> None:
        """SIGTERM or Ctrl-C: the session hands in its work; a second one does not wait for it."""
        if self.ending:
            self._kill()
        self.ending = True

    def prepare(self) -> None:
        """Make the folder; waits for the gate, which may come after us.

        Raises:
            Ended: We were asked to end meanwhile.
            UserError: The gate does not let us in.
        """
        told = self._patiently(self.gate.welcome)
        self.folder = RunFolder(self.home / str(told["run"]))
        self.config = configuration.parse(json.loads(told["config"]), "the run's settings")
        os.umask(0o077)
        left = children.kill_marked(self._mark)  # what a killed predecessor left
        if left:
            raise UserError(f"{left} processes of an earlier session cannot be ended: end them")
        self.folder.create()
        site_home = self.folder.site(self.leave.site)
        site_home.mkdir(parents=True, exist_ok=True)
        self.folder.resolved.write_text(str(told["config"]), encoding="utf-8")
        host, port = place(self.leave.address)
        data = self.folder.path / "data"
        data.mkdir(exist_ok=True)
        Endpoints(port, "", str(data), host).save(self.folder)
        self.leave.save(self.folder.private / PASS_FILE)
        tls = self.folder.private / "tls"
        tls.mkdir(mode=0o700, exist_ok=True)
        (tls / "ca.crt").write_text(self.leave.authority, encoding="ascii")
        certificates.write_secret(self.folder.private / "superexec.secret")
        for name in (TOKENIZER_FILE, MANIFEST_FILE):
            self._patiently(partial(self.gate.fetch, f"data/{name}", data / name))
        self._fetch_snapshot(told["snapshot"], site_home / "snapshot")
        log.info("%s of %s, in %s", self.leave.site, self.folder.run_id, self.folder.path)

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
            code = self._run(session, watched=only is None)
            if only is not None or self.ending:
                return code
            done = session

    def end(self) -> None:
        """End what is left of a session."""
        if self.leader is not None and self.leader.poll() is None:
            self._ask_to_end()

    def _next_session(self, done: int) -> int:
        """The session that is wanted next; each is run once, for its key is used up."""
        while True:
            wanted = self._patiently(self.gate.wanted)
            if wanted is not None and wanted.up and wanted.session > done:
                return wanted.session
            self._pause()

    def _run(self, session: int, *, watched: bool) -> int:
        site, private = self.leave.site, self.folder.private
        key = private / "keys" / member(site, session)
        if not key.exists():
            certificates.write_session_key(key)
        public = key.with_suffix(f"{key.suffix}.pub").read_text(encoding="utf-8")
        self._patiently(partial(self.gate.register, session, public))
        section = self.config.sites[site]
        command = [sys.executable, "-m", "uncurtail", "site", "lead", str(self.folder.path), site]
        self.leader = children.spawn(
            [*command, str(session)],
            marks=leader_marks(self._mark, site, session, section),
            log=self.folder.site(site) / "log",
            dies_with_parent=True,
        )
        log.info("session %d", session)
        while self.leader.poll() is None:
            if self.ending or (watched and not self._still_wanted(session)):
                self._ask_to_end()
                break
            clock.pause(ASK_EVERY_WALL_S)
        log.info("session %d has ended", session)
        return self.leader.wait()

    def _still_wanted(self, session: int) -> bool:
        """Whether nobody says otherwise; out of the gate's reach, the session goes on."""
        try:
            wanted = self.gate.wanted()
        except BlobError:
            return True
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

    def _fetch_snapshot(self, names: list[str], folder: Path) -> None:
        """The site's last optimizer state, if the run has one: its index is what makes it one."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: name.endswith(".json")):
            place_ = folder / Path(name).name
            if place_.suffix == ".json" or not place_.exists():
                self._patiently(partial(self.gate.fetch, f"snapshot/{name}", place_))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until it works: the gate may be away for a while, and comes back."""
        wait_s = ASK_EVERY_WALL_S
        while True:
            try:
                return call()
            except UnusableError:
                raise
            except BlobError as error:
                if "the token is not that of this site" in str(error):
                    _refused(error)
                log.warning("%s", error)
            self._pause(wait_s)
            wait_s = min(2.0 * wait_s, 30.0)

    def _pause(self, wait_s: float = ASK_EVERY_WALL_S) -> None:
        """Wait, unless we are to end.

        Raises:
            Ended: We are.
        """
        give_up = clock.monotonic() + wait_s
        while clock.monotonic() < give_up:
            if self.ending:
                raise Ended
            clock.pause(0.2)


def _refused(error: BlobError) -> NoReturn:
    raise UserError(
        f"{error}: copy anew what uncurtail site invite RUN SITE prints where the run is"
    ) from None
