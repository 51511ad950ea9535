"""Keep what a SuperLink knows of SuperNodes equal to a folder of public keys: a program by itself.

It runs beside a SuperLink, in an image with Flower and without us, so it imports nothing of ours;
the operator hands its text over. `flwr supernode list` shows neither names nor keys, so nothing
could be compared with it: this asks by the client that `flwr` itself asks with, the same in 1.40,
1.41 and 1.42.

A file is one key in OpenSSH form, and its name, without `.pub`, is the SuperNode's. States are
compared at each look and nothing is remembered, so a SuperLink that forgot is told again. A file
that is no key is said, and whoever is registered under its name stays; so does everybody while
there is no key at all. Flower never takes a key again that was unregistered.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.typing import SuperLinkConnection
from flwr.cli.utils import init_http_client_from_connection
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest

_UNREGISTERED = "unregistered"


class Node(Protocol):
    """A SuperNode as SuperLink lists it."""

    @property
    def node_id(self) -> int:
        """Its number."""

    @property
    def public_key(self) -> bytes:
        """In PEM form."""

    @property
    def status(self) -> str:
        """registered, online, offline or unregistered."""

    @property
    def name(self) -> str:
        """Empty if it was registered without one."""


class SuperLink(Protocol):
    """What is asked of one; a refusal is an httpx.HTTPError."""

    def nodes(self) -> Sequence[Node]:
        """Every SuperNode that it ever knew."""

    def register(self, key: bytes, name: str) -> None:
        """Let the holder of the key's other half in."""

    def unregister(self, node_id: int) -> None:
        """Never let it in again."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder says: names by key, and for names whose file is no key, why not."""

    names: dict[bytes, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Steps:
    """What makes the two equal, and what cannot be made so."""

    register: dict[bytes, str]
    unregister: list[Node]
    problems: list[str]


def read(folder: Path) -> Folder:
    """Every key of a folder. Names that begin with a dot are the kubelet's own."""
    found = Folder()
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(".pub")
        if path.name.startswith("."):
            continue
        try:
            key = public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            found.broken[name] = str(error)
            continue
        if key in found.names:
            found.broken[name] = f"the same key as {found.names[key]}: each needs its own"
        else:
            found.names[key] = name
    return found


def public_key(text: bytes) -> bytes:
    """A key in OpenSSH form as SuperLink has it.

    Raises:
        ValueError: It is none that Flower takes.
    """
    if b"PRIVATE KEY" in text:
        raise ValueError("a private key: take it out of here, and make a new pair")
    try:
        key = serialization.load_ssh_public_key(text.strip())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an ECDSA public key in OpenSSH form: ssh-keygen -t ecdsa -b 384")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def steps(folder: Folder, nodes: Iterable[Node]) -> Steps:
    """Compare the two."""
    gone = {node.public_key for node in nodes if node.status == _UNREGISTERED}
    live = {node.public_key: node for node in nodes if node.status != _UNREGISTERED}
    problems = [f"{name}: {why}" for name, why in folder.broken.items()]
    problems += [
        f"{name}: this key was unregistered, and Flower takes none again: make a new pair"
        for key, name in folder.names.items()
        if key in gone
    ]
    problems += [
        f"{folder.names[key]}: already registered, as {node.name or 'nobody in particular'}"
        for key, node in live.items()
        if folder.names.get(key, node.name) != node.name
    ]
    if not folder.names:
        problems.append("no key is there: nobody is registered, and nobody unregistered")
    known = gone | live.keys()
    return Steps(
        register={key: name for key, name in folder.names.items() if key not in known},
        unregister=[
            node
            for key, node in live.items()
            if folder.names and key not in folder.names and node.name not in folder.broken
        ],
        problems=problems,
    )


def look(folder: Path, superlink: SuperLink) -> list[str]:
    """Compare once and act; what went wrong. One that is refused stops no other.

    Raises:
        httpx.RequestError: SuperLink does not answer.
    """
    wanted = steps(read(folder), superlink.nodes())
    problems = wanted.problems
    for key, name in wanted.register.items():
        say(f"register {name}")
        try:
            superlink.register(key, name)
        except httpx.HTTPStatusError as error:
            problems.append(f"{name}: not registered: {_answer(error)}")
    for node in wanted.unregister:
        say(f"unregister {node.name or 'one without a name'} ({node.node_id})")
        try:
            superlink.unregister(node.node_id)
        except httpx.HTTPStatusError as error:
            problems.append(f"{node.name}: not unregistered: {_answer(error)}")
    return problems


def _answer(error: httpx.HTTPStatusError) -> str:
    return f"HTTP {error.response.status_code} {error.response.text[:200]}".strip()


def say(text: str) -> None:
    """One line of the container's log."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Flower:
    """A real SuperLink, over TLS."""

    def __init__(self, address: str, authority: Path) -> None:
        connection = SuperLinkConnection(
            name="keys", address=address, root_certificates=str(authority)
        )
        self._client = init_http_client_from_connection(connection)

    def nodes(self) -> Sequence[Node]:  # noqa: D102
        return list(self._client.ListNodes(ListNodesRequest()).nodes_info)

    def register(self, key: bytes, name: str) -> None:  # noqa: D102
        self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def unregister(self, node_id: int) -> None:  # noqa: D102
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))


def parser() -> argparse.ArgumentParser:
    """What the program is called with."""
    made = argparse.ArgumentParser("supernode-keys")
    made.add_argument("--keys", type=Path, required=True, help="the folder")
    made.add_argument("--superlink", required=True, help="HOST:PORT of its Control API")
    made.add_argument("--root-certificates", type=Path, required=True, help="what proves it")
    made.add_argument("--every-s", type=float, default=5.0, help="between two looks")
    return made


def main() -> None:
    """Look again and again, until told to end; say what changes."""
    args = parser().parse_args()
    ended = threading.Event()
    # Process 1 of a container is not ended by a signal for which it has no handler.
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    said: list[str] = []
    superlink = Flower(args.superlink, args.root_certificates)
    while not ended.is_set():
        try:
            problems = look(args.keys, superlink)
        except httpx.HTTPError as error:
            problems = [f"SuperLink does not answer: {type(error).__name__} {error}"]
        for problem in problems:
            if problem not in said:
                say(problem)
        said = problems
        ended.wait(args.every_s)


if __name__ == "__main__":
    main()
