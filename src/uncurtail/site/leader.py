"""The head of a session's process group: trainer, SuperNode and SuperExec live and die together.

One of them ends: the whole session ends, and the coordinator starts a new one with a new key,
which is back in seconds where a reused key would be locked out for a minute.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from uncurtail.adapters import certificates, children, clock, gpu_limits
from uncurtail.adapters.flower_commands import Flower
from uncurtail.adapters.redis_server import free_port
from uncurtail.core.rounds import member
from uncurtail.runfolder import RunFolder

REGISTER_TIMEOUT_S = 60.0
STOP_GRACE_S = 1.5


class Stop(Exception):  # noqa: N818 - not an error: somebody asked us to end
    """The provisioner asked this session to end."""


def lead(
    folder: RunFolder, flower: Flower, site: str, session: int, *, ranks: int, patience_s: float
) -> int:
    """Run one session until it is told to stop (0) or loses a member (1).

    `ranks` processes train; only the first of them speaks to anyone but the others. At the end
    they have `patience_s` to finish the snapshot that they are writing.
    Must be the leader of its own session (setsid): at the end it kills its process group.
    """
    signal.signal(signal.SIGTERM, _stop)
    sockets = Path(tempfile.mkdtemp(prefix="uncurtail-", dir=os.environ.get("XDG_RUNTIME_DIR")))
    members: list[subprocess.Popen[bytes]] = []
    limits = folder.site(site) / gpu_limits.RECORD
    gpu_limits.restore(limits)  # a session before this one may have been killed while capped
    code = 1
    try:
        _start(folder, flower, (site, session, ranks), sockets / "trainer", members)
        while all(child.poll() is None for child in members):
            clock.pause(0.2)
    except Stop:
        code = 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        shutil.rmtree(sockets, ignore_errors=True)
        unfinished = folder.unfinished_snapshot(site)
        end(members[:ranks], members[ranks:], unfinished.exists, patience_s)
        gpu_limits.restore(limits)
        _kill_group()
        unfinished.unlink(missing_ok=True)  # whoever was to remove it is gone
    return code


def _start(
    folder: RunFolder,
    flower: Flower,
    who: tuple[str, int, int],
    trainer_socket: Path,
    members: list[subprocess.Popen[bytes]],
) -> None:
    site, session, ranks = who
    log = folder.site(site) / "log"
    key = folder.private / "keys" / member(site, session)

    def start(role: str, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        marks = {children.ROLE: role, **flower.environment(), **more}
        return children.spawn(command, marks=marks, log=log, dies_with_parent=True, own_group=False)

    # The trainer first: importing torch takes longest, and runs beside the registration.
    trainer = [sys.executable, "-m", "uncurtail", "site", "train", str(folder.path), site]
    trainer += [str(session), str(trainer_socket)]
    for number, place in enumerate(_places(ranks)):
        members.append(start("trainer" if number == 0 else f"rank-{number}", trainer, **place))
    if not key.exists():  # elsewhere it was registered through the gate
        certificates.write_session_key(key)
        public = key.with_suffix(key.suffix + ".pub")
        register = start("register", flower.register(public, key.name))
        if register.wait(timeout=REGISTER_TIMEOUT_S) != 0:
            raise SystemExit(f"Flower did not register {key.name}: see {log}")
    port = free_port()
    members.append(start("supernode", flower.supernode(key, port, trainer_socket)))
    members.append(start("superexec", flower.site_superexec(port)))


def _places(ranks: int) -> list[dict[str, str]]:
    """Each rank's place among the others, in the variables that torchrun would set.

    Not torchrun itself: it puts its ranks into sessions of their own, out of reach of our group's
    end, and takes seconds to start.
    """
    if ranks == 1:
        return [{}]
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    return [{**meeting, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)]


def end(
    trainers: list[subprocess.Popen[bytes]],
    others: list[subprocess.Popen[bytes]],
    saving: Callable[[], bool],
    patience_s: float,
) -> None:
    """Ask a session's members to end, and wait a moment for it: the SuperNode says goodbye.

    Trainers are left in peace while they are `saving`, for as long as `patience_s`: their optimizer
    state is what the site's next session begins with.
    """
    _ask(others)
    give_up = clock.monotonic() + patience_s
    while saving() and all(t.poll() is None for t in trainers) and clock.monotonic() < give_up:
        clock.pause(0.05)
    _ask(trainers)
    members = [*trainers, *others]
    deadline = clock.monotonic() + STOP_GRACE_S
    while any(child.poll() is None for child in members) and clock.monotonic() < deadline:
        clock.pause(0.05)


def _kill_group() -> None:
    if os.getpgrp() == os.getpid():
        # Also the ClientApps, which are not our children. We go with them: say why first.
        sys.stdout.flush()
        for pid in children.group(os.getpid()):
            children.signal_pid(pid, signal.SIGKILL)


def _ask(members: list[subprocess.Popen[bytes]]) -> None:
    for child in members:
        if child.poll() is None:
            child.terminate()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stop
