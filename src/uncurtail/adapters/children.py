"""Child processes that cannot be lost: each marked, in its own session, tied to its parent.

Every process of a run carries UNCURTAIL_RUN_ID in its environment; "nothing left" means no live
process with that mark. The supervisor is a child subreaper, so what loses its parent becomes its
child and is reaped. Linux; elsewhere the marks work and the parent tie does not.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

RUN = "UNCURTAIL_RUN_ID"
SITE = "UNCURTAIL_SITE"
SESSION = "UNCURTAIL_SESSION"
ROLE = "UNCURTAIL_ROLE"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Marked:
    """A live process of a run, by its marks. `site` is empty for the coordinator's own."""

    pid: int
    role: str
    site: str
    session: int


def environment(marks: Mapping[str, str]) -> dict[str, str]:
    """This environment with the marks, and with our interpreter's commands first on the PATH.

    Flower starts its helpers by name: without the PATH they are not found.
    """
    commands = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{commands}{os.pathsep}{path}", **marks}


def spawn(
    command: Sequence[str],
    *,
    marks: Mapping[str, str],
    log: Path,
    dies_with_parent: bool,
    own_group: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a child, its output appended to `log`.

    Args:
        command: Program and arguments.
        marks: Environment variables to add.
        log: Where stdout and stderr go.
        dies_with_parent: Killed when this process ends, however it ends. Only from a process's
            main thread: the tie is to the spawning *thread*.
        own_group: In a session of its own, so that a terminal's Ctrl-C does not reach it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(marks),
            start_new_session=own_group,
            umask=0o077,  # keys, logs, weights: this user's alone
            preexec_fn=_die_with_parent if dies_with_parent and _LIBC else None,
        )


def become_subreaper() -> None:
    """Adopt orphaned descendants, so that none escapes to init unreaped."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def be_told_of_the_end_of(parent: int) -> None:
    """Be sent SIGTERM when this parent, or the thread of it that started us, ends (Linux).

    It may have ended before: `has_parent` says so.
    """
    if _LIBC is not None and has_parent(parent):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def has_parent(parent: int) -> bool:
    """Whether this process is still the child of that one."""
    return os.getppid() == parent


def reap(keep: Sequence[subprocess.Popen[bytes]]) -> None:
    """Collect adopted children that ended; those in `keep` are left to their owners."""
    own = {child.pid for child in keep}
    for child in psutil.Process().children():
        if child.pid in own:
            continue
        try:
            os.waitpid(child.pid, os.WNOHANG)
        except ChildProcessError:
            continue


def marked(run_id: str) -> list[Marked]:
    """Every live process of this user that carries the run's mark, this one excepted."""
    found: list[Marked] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            marks = process.environ()
            if marks.get(RUN) != run_id or process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.Error, OSError):
            continue  # gone, another user's, or a zombie: not a live process of ours
        session = marks.get(SESSION, "")
        found.append(
            Marked(
                process.pid,
                marks.get(ROLE, ""),
                marks.get(SITE, ""),
                int(session) if session.isdecimal() else 0,
            )
        )
    return found


def signal_pid(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is already gone is what was wanted."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def keep_to(pid: int, cpus: Collection[int]) -> None:
    """Let a process, and all that it will start, run on these CPUs alone.

    To be called before it has children. CPUs that this machine lacks are left out.
    """
    # Gone already; or a system that cannot do it, which is no reason not to train.
    with contextlib.suppress(psutil.Error, AttributeError):
        psutil.Process(pid).cpu_affinity(sorted(cpus))


def has_child(pid: int) -> bool:
    """Whether a process has a living child."""
    try:
        alive = [c for c in psutil.Process(pid).children() if c.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return False
    return bool(alive)


def group(leader: int) -> list[int]:
    """The other processes of a process group."""
    found: list[int] = []
    for pid in psutil.pids():
        try:
            if pid != leader and os.getpgid(pid) == leader:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def kill_marked(run_id: str, rounds: int = 20) -> int:
    """Kill every marked process, again until none is left; returns how many were left at last."""
    left = marked(run_id)
    for _ in range(rounds):
        if not left:
            break
        for process in left:
            signal_pid(process.pid, signal.SIGKILL)
        _, _ = psutil.wait_procs(_handles(left), timeout=0.25)
        left = marked(run_id)
    return len(left)


def alive(pid: int, started: float) -> bool:
    """Whether this very process lives: same pid, same start time (psutil's `create_time`)."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 0.01
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def started(pid: int) -> float:
    """When a process started: what tells it from a later one with its pid."""
    return float(psutil.Process(pid).create_time())


def introduce(path: Path) -> None:
    """Note which process this is, for `introduced`; whole, or the note before stays."""
    body = {"pid": os.getpid(), "started": started(os.getpid())}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(body), encoding="utf-8")
    temporary.replace(path)


def introduced(path: Path) -> int | None:
    """The process that noted itself there, if this very one still lives."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    pid = int(body["pid"])
    return pid if alive(pid, body["started"]) else None


def _handles(processes: Sequence[Marked]) -> list[psutil.Process]:
    handles: list[psutil.Process] = []
    for process in processes:
        try:
            handles.append(psutil.Process(process.pid))
        except psutil.Error:
            continue
    return handles


def _die_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
