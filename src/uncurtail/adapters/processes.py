"""Sites as local processes: one process group per session, found again by its marks.

What exists is read from the process table, not from memory, so a new coordinator sees the sites of
the old one, and nothing that belongs to a session outlives it unnoticed.
"""

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from uncurtail.adapters import children, clock, gpu_limits
from uncurtail.core import slots
from uncurtail.core.fleet import SiteSection
from uncurtail.runfolder import RunFolder

LEADER = "leader"
LOOK_EVERY_S = 0.25
KILL_AFTER_S = 8.0


def leader_command(run: Path, site: str, session: int) -> list[str]:
    """What heads a session, in the run's folder or in one that joined it."""
    command = [sys.executable, "-m", "uncurtail", "site", "lead"]
    return [*command, str(run), site, str(session)]


def leader_marks(run: str, site: str, session: int, section: SiteSection) -> dict[str, str]:
    """The environment of a session's leader: whose it is, and which part of the machine is its."""
    marks = {
        children.RUN: run,
        children.SITE: site,
        children.SESSION: str(session),
        children.ROLE: LEADER,
        "OMP_NUM_THREADS": str(section.threads),
    }
    if section.cuda_devices is not None:
        marks["CUDA_VISIBLE_DEVICES"] = section.cuda_devices
        marks["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts, which measures them
    return marks


class ProcessProvisioner:
    """Starts `uncurtail site lead` for each session, with its own CPU share or GPU slot."""

    trouble: str | None = None  # what cannot be started ends, and its log says why

    def __init__(
        self,
        folder: RunFolder,
        sites: Mapping[str, SiteSection],
        snapshot_timeout_s: float,
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        self._folder = folder
        self._sites = sites
        self._snapshot_timeout_s = snapshot_timeout_s
        self._kill_after_s = kill_after_s
        self._own: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._asked: dict[tuple[str, int], float] = {}
        self._seen: list[children.Marked] = []
        self._looked = 0.0

    def provision(self, site: str, session: int) -> None:
        """Start the session unless it was started already, by us or by a coordinator before us."""
        if (site, session) in self._own or session in self.alive().get(site, ()):
            return
        section = self._sites[site]
        marks = leader_marks(self._folder.run_id, site, session, section)
        # Not tied to this process: the site outlives a coordinator that crashes, and the next one
        # finds it. The supervisor adopts it.
        child = children.spawn(
            leader_command(self._folder.path, site, session),
            marks=marks,
            log=self._folder.site(site) / "log",
            dies_with_parent=False,
        )
        if section.cpus is not None:
            children.keep_to(child.pid, slots.cpus(section.cpus))
        self._own[site, session] = child
        self._looked = 0.0

    def release(self, site: str, session: int) -> None:
        """Ask the session to end; after a while, or without a leader, end it the hard way.

        The while is longer for a trainer that is seen to write its snapshot.
        """
        members = [p for p in self._look() if (p.site, p.session) == (site, session)]
        asked_at = self._asked.setdefault((site, session), clock.monotonic())
        saving_s = (
            self._snapshot_timeout_s if self._folder.unfinished_snapshot(site).exists() else 0.0
        )
        patient = clock.monotonic() - asked_at < self._kill_after_s + saving_s
        leaders = [p for p in members if p.role == LEADER]
        if leaders and patient:
            for leader in leaders:
                children.signal_pid(leader.pid, signal.SIGTERM)
            return
        for process in members:
            children.signal_pid(process.pid, signal.SIGKILL)

    def alive(self) -> dict[str, frozenset[int]]:
        """The sessions with a living leader. What a dead leader left behind is put right here."""
        found: dict[str, set[int]] = {}
        processes = self._look()
        for process in processes:
            if process.role == LEADER:
                found.setdefault(process.site, set()).add(process.session)
        for process in processes:
            if process.site and process.session not in found.get(process.site, set()):
                children.signal_pid(process.pid, signal.SIGKILL)
        for site in self._sites.keys() - found.keys():
            gpu_limits.restore(self._folder.site(site) / gpu_limits.RECORD)
        return {site: frozenset(sessions) for site, sessions in found.items()}

    def _look(self) -> list[children.Marked]:
        if clock.monotonic() - self._looked >= LOOK_EVERY_S:
            for child in self._own.values():
                child.poll()  # reap
            self._seen = [p for p in children.marked(self._folder.run_id) if p.site]
            self._looked = clock.monotonic()
        return self._seen
