"""A container's box: files over those of this machine, its own processes, its pod's network."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.kubelet.environment import Launch
from tests.cluster.kubelet.volumes import Mount

# What is written goes to memory and is gone with the namespace; nothing of this machine changes.
_SETUP = """set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {root}
mkdir {root}/upper {root}/work {root}/new
mount -t overlay overlay -o lowerdir=/,upperdir={root}/upper,workdir={root}/work {root}/new
mount -t proc proc {root}/new/proc
mount --rbind /dev {root}/new/dev
hostname {hostname}
place() {{
  target=$(chroot {root}/new realpath -m "$2")
  if [ -d "$1" ]; then chroot {root}/new mkdir -p "$target"
  else chroot {root}/new mkdir -p "$(dirname "$target")"; chroot {root}/new touch "$target"; fi
  mount --bind "$1" "{root}/new$target"
  if [ "$3" = ro ]; then mount -o remount,bind,ro "{root}/new$target"; fi
}}
"""
_START = 'cd "$1" && shift && exec "$@"'


@dataclass(frozen=True, slots=True)
class Box:
    """Where a container lives."""

    namespace: str
    hostname: str
    root: Path
    mounts: Sequence[Mount]

    @property
    def begun(self) -> Path:
        """There as soon as the box is ready and its command is next."""
        return self.root.with_suffix(".begun")

    def command(self, launch: Launch) -> list[str]:
        """The words that start a container in its box; its command is process 1 there."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.begun.unlink(missing_ok=True)
        script = self.root.with_suffix(".sh")
        script.touch(mode=0o600)
        script.write_text(self._script(launch))
        # All of it dies with this process: pdeathsig for the outer half, kill-child for the inner.
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            *("nsenter", f"--net=/run/netns/{self.namespace}"),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
            *("sh", str(script)),
        ]

    def _script(self, launch: Launch) -> str:
        lines = [_SETUP.format(root=shlex.quote(str(self.root)), hostname=self.hostname)]
        for mount in self.mounts:
            mode = "ro" if mount.is_read_only else "rw"
            lines.append(shlex.join(["place", str(mount.source), mount.target, mode]))
        inner = ["chroot", str(self.root / "new"), *_inside(launch)]
        lines.append(f"touch {shlex.quote(str(self.begun))}")
        lines.append(f"exec {shlex.join(inner)}")
        return "\n".join(lines)


def _inside(launch: Launch) -> list[str]:
    variables = [f"{key}={value}" for key, value in launch.environment.items()]
    start = ["/bin/sh", "-c", _START, "sh", launch.folder, *launch.words]
    return ["/usr/bin/env", "-i", *variables, *start]


def joining(pid: int, launch: Launch) -> list[str]:
    """The words that run another command in the box of a process."""
    spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root")
    return ["nsenter", f"--target={pid}", *spaces, *_inside(launch)]
