"""A network of its own for each pod: namespaces on a bridge, which leave nothing."""

import contextlib
import itertools
import os
import re
import subprocess
from dataclasses import dataclass, field

_TRIAL = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/n && mount -t overlay overlay -o "
_TRIAL += "lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/n && mount -t proc proc /mnt/n/proc"
_COUNTER = itertools.count()


def ip(*words: str) -> str:
    """Run `ip`, and fail with what it says."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str | None:
    """Why pods cannot have namespaces here; None where they can."""
    if os.geteuid() != 0:
        return "pods need network namespaces: run the tests as root"
    trial = ["unshare", "--mount", "--pid", "--fork", "--uts", "sh", "-c", _TRIAL]
    try:
        subprocess.run(trial, capture_output=True, check=True, timeout=10)
        ip("-o", "link")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"pods need namespaces and overlays, which are not permitted here: {error}"
    return None


@dataclass
class Network:
    """A bridge with 10.x.0.0/16 behind it: pods below 10.x.200.0, Services above."""

    tag: str = field(default_factory=lambda: f"gr{os.getpid()}x{next(_COUNTER)}")
    namespaces: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        _sweep()
        taken = set(re.findall(r"inet 10\.(\d+)\.", ip("-o", "-4", "addr")))
        # Two test processes that start at once do not look at the same number first.
        numbers = [128 + (os.getpid() + n) % 120 for n in range(120)]
        free = next(n for n in numbers if str(n) not in taken)
        self.prefix = f"10.{free}"
        self.gateway = f"{self.prefix}.0.1"
        self._pods = itertools.count(2)
        self._services = itertools.count(1)
        ip("link", "add", self.tag, "type", "bridge")
        ip("addr", "add", f"{self.gateway}/16", "dev", self.tag)
        ip("link", "set", self.tag, "up")

    def attach(self, uid: str) -> str:
        """Make a namespace for a pod; its address."""
        number = next(self._pods)
        name, address = f"{self.tag}p{number}", f"{self.prefix}.{number // 250}.{number % 250}"
        outside, inside = f"{self.tag}v{number}"[-15:], "eth0"
        ip("netns", "add", name)
        self.namespaces[uid] = name
        peer = ("peer", "name", inside, "netns", name)
        ip("link", "add", outside, "type", "veth", *peer)
        ip("link", "set", outside, "master", self.tag, "up")
        ip("-n", name, "addr", "add", f"{address}/16", "dev", inside)
        ip("-n", name, "link", "set", inside, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "route", "add", "default", "via", self.gateway)
        return address

    def detach(self, uid: str) -> None:
        name = self.namespaces.pop(uid, None)
        if name is not None:
            ip("netns", "del", name)

    def service_address(self) -> str:
        """An address for a Service, on the bridge: whoever serves it can listen there."""
        number = next(self._services)
        address = f"{self.prefix}.{200 + number // 250}.{number % 250 + 1}"
        ip("addr", "add", f"{address}/32", "dev", self.tag)
        return address

    def stop(self) -> None:
        for uid in list(self.namespaces):
            self.detach(uid)
        with contextlib.suppress(RuntimeError):
            ip("link", "del", self.tag)


def _sweep() -> None:
    """Remove what a test process left that was killed."""
    for name in ip("netns", "list").split():
        if (owner := re.match(r"gr(\d+)x\d+p\d+$", name)) and not _lives(owner[1]):
            ip("netns", "del", name)
    for line in ip("-o", "link", "show", "type", "bridge").splitlines():
        if (owner := re.search(r": (gr(\d+)x\d+):", line)) and not _lives(owner[2]):
            ip("link", "del", owner[1])


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True
