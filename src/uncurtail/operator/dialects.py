"""What Flower's commands are called with, which has changed from version to version.

Two dialects are spoken. Checked with the argument parsers of the released packages (1.25, 1.30,
1.33, 1.35 to 1.41): up to 1.33 each API has a gRPC port of its own; from 1.40 on all of them share
one HTTP port. Between, the ports moved one by one, and those versions are refused.
"""

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from uncurtail.operator import names
from uncurtail.operator.spec import FederationSpec, Isolation

_TAG = re.compile(r":v?(\d+)\.(\d+)[^/:]*$")
_VERSION = re.compile(r"v?(\d+)\.(\d+)([.+-].*)?$")
CLIENTAPP_PORT = 9094
_NEWEST = (1, 41)


@dataclass(frozen=True, slots=True)
class LinkFlags:
    """What a SuperLink is to do."""

    isolation: Isolation
    insecure: bool
    tls: bool = False
    auth: bool = False
    superexec_secret: bool = False
    database: bool = False
    probes: bool = False


@dataclass(frozen=True, slots=True)
class NodeFlags:
    """What a SuperNode is to do."""

    superlink: str  # host:port
    isolation: Isolation
    insecure: bool
    tls: bool = False
    auth: bool = False
    superexec_secret: bool = False
    probes: bool = False
    node_config: str | None = None


@dataclass(frozen=True, slots=True)
class ExecFlags:
    """What a SuperExec runs."""

    runs: Literal["serverapp", "clientapp"]
    insecure: bool  # of the SuperLink; a SuperNode is reached inside its pod, always in plain
    tls: bool = False
    superexec_secret: bool = False
    probes: bool = False


class Dialect(Protocol):
    """One way of calling Flower's three commands."""

    @property
    def one_port(self) -> bool:
        """Whether the SuperLink serves all of its APIs on one port."""

    def link_ports(self, isolation: Isolation) -> dict[str, int]:
        """The SuperLink's container ports by name."""

    def superlink(self, flags: LinkFlags) -> list[str]:
        """Arguments of flower-superlink."""

    def supernode(self, flags: NodeFlags) -> list[str]:
        """Arguments of flower-supernode."""

    def superexec(self, flags: ExecFlags) -> list[str]:
        """Arguments of flower-superexec."""


@dataclass(frozen=True, slots=True)
class Http:
    """Flower 1.40 and 1.41."""

    one_port: bool = True

    def link_ports(self, isolation: Isolation) -> dict[str, int]:  # noqa: D102
        return {"http": 8000}

    def superlink(self, flags: LinkFlags) -> list[str]:  # noqa: D102
        # Flower binds to 127.0.0.1 if not told otherwise: no other pod would reach it.
        return [
            *_link_start(flags),
            "--host=0.0.0.0",
            "--port=8000",
            *_if(flags.auth, "--enable-supernode-auth"),
            *_if(flags.superexec_secret, f"--superexec-auth-secret-file={names.SUPEREXEC_SECRET}"),
        ]

    def supernode(self, flags: NodeFlags) -> list[str]:  # noqa: D102
        return [
            *_node_start(flags),
            *_if(flags.isolation == "process", "--host=127.0.0.1", f"--port={CLIENTAPP_PORT}"),
            *_if(flags.auth, f"--auth-supernode-private-key={names.AUTH_KEY}"),
            *_if(flags.superexec_secret, f"--superexec-auth-secret-file={names.SUPEREXEC_SECRET}"),
            *_node_end(flags),
        ]

    def superexec(self, flags: ExecFlags) -> list[str]:  # noqa: D102
        server = flags.runs == "serverapp"
        return [
            f"--runtime-api-address=127.0.0.1:{8000 if server else CLIENTAPP_PORT}",
            *_if(flags.insecure or not server, "--insecure"),
            *_if(server and flags.tls, f"--root-certificates={names.TLS_DIR}/ca.crt"),
            *_if(flags.superexec_secret, f"--superexec-auth-secret-file={names.SUPEREXEC_SECRET}"),
            *_health(flags.probes, names.SUPEREXEC_HEALTH_PORT),
        ]


@dataclass(frozen=True, slots=True)
class Grpc:
    """Flower up to 1.33. A SuperExec reaches its side over loopback, without TLS."""

    one_port: bool = False

    def link_ports(self, isolation: Isolation) -> dict[str, int]:  # noqa: D102
        ports = {"fleet": 9092, "control": 9093}
        return {**ports, "serverappio": 9091} if isolation == "process" else ports

    def superlink(self, flags: LinkFlags) -> list[str]:  # noqa: D102
        # With certificates the plain ServerAppIo API must not be heard outside of the pod.
        loopback = "--serverappio-api-address=127.0.0.1:9091"
        return [*_link_start(flags), *_if(flags.tls and flags.isolation == "process", loopback)]

    def supernode(self, flags: NodeFlags) -> list[str]:  # noqa: D102
        address = f"--clientappio-api-address=127.0.0.1:{CLIENTAPP_PORT}"
        return [
            *_node_start(flags),
            *_if(flags.isolation == "process", address),
            *_node_end(flags),
        ]

    def superexec(self, flags: ExecFlags) -> list[str]:  # noqa: D102
        port = 9091 if flags.runs == "serverapp" else CLIENTAPP_PORT
        return [
            f"--plugin-type={flags.runs}",
            f"--appio-api-address=127.0.0.1:{port}",
            "--insecure",
            *_health(flags.probes, names.SUPEREXEC_HEALTH_PORT),
        ]


def _if(wanted: bool, *args: str) -> list[str]:
    return list(args) if wanted else []


def _health(wanted: bool, port: int) -> list[str]:
    return _if(wanted, f"--health-server-address=0.0.0.0:{port}")


def _link_start(flags: LinkFlags) -> list[str]:
    return [
        f"--isolation={flags.isolation}",
        *_if(flags.insecure, "--insecure"),
        *_if(
            flags.tls,
            f"--ssl-certfile={names.TLS_DIR}/tls.crt",
            f"--ssl-keyfile={names.TLS_DIR}/tls.key",
            f"--ssl-ca-certfile={names.TLS_DIR}/ca.crt",
        ),
        *_if(flags.database, f"--database={names.STATE_DIR}/state.db"),
        *_health(flags.probes, names.HEALTH_PORT),
    ]


def _node_start(flags: NodeFlags) -> list[str]:
    return [
        f"--superlink={flags.superlink}",
        f"--isolation={flags.isolation}",
        *_if(flags.insecure, "--insecure"),
        *_if(flags.tls, f"--root-certificates={names.TLS_DIR}/ca.crt"),
        *_health(flags.probes, names.HEALTH_PORT),
    ]


def _node_end(flags: NodeFlags) -> list[str]:
    return [] if flags.node_config is None else [f"--node-config={flags.node_config}"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A dialect, or why there is none; `guessed` if nothing said the version."""

    dialect: Dialect | None
    why: str = ""
    guessed: bool = False


def dialect_of(spec: FederationSpec) -> Choice:
    """By spec.version; by the tag of the SuperLink's image; else the newest."""
    said = _VERSION.match(spec.version or "") or _TAG.search(spec.superlink.image)
    version = (int(said[1]), int(said[2])) if said else _NEWEST
    if version >= (1, 40):
        return Choice(Http(), guessed=said is None)
    if version <= (1, 33):
        return Choice(Grpc())
    why = (
        f"version: Flower {version[0]}.{version[1]} is between two sets of flags; use 1.33 or "
        "older, or 1.40 or newer"
    )
    return Choice(None, why)
