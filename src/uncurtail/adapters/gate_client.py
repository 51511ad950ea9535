"""A machine elsewhere, at the run's gate: state, models, updates, records and data over HTTPS.

It trusts the run's own authority and nobody else's, and shows the token of its site.
"""

import hashlib
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.gate_pass import Pass
from uncurtail.core.orders import Announcement, Desired, Wanted

STATE_TIMEOUT_S = 2.0  # a heartbeat that takes longer is told by the next
BULK_TIMEOUT_S = 60.0  # between two pieces
PIECE_BYTES = 1 << 20


class Gate:
    """The calls of one site. Safe to use from several threads."""

    def __init__(self, leave: Pass) -> None:
        context = ssl.create_default_context(cadata=leave.authority)
        self._site = leave.site
        self._client = httpx.Client(
            base_url=f"https://{leave.address}/site/{leave.site}",
            headers={"authorization": f"Bearer {leave.token}"},
            verify=context,
            timeout=httpx.Timeout(BULK_TIMEOUT_S, connect=10.0),
        )

    def welcome(self) -> dict[str, Any]:
        """The run's name, its settings, and the names of its data files.

        Raises:
            BlobError: The gate cannot be reached, or does not let us in.
        """
        with _told("the run's settings"):
            answer = self._client.get("/welcome")
            _check(answer)
            return dict(answer.json())

    def wanted(self) -> Wanted | None:
        """Which session should be up; None while nobody says.

        Raises:
            BlobError: The gate cannot be reached, or does not let us in.
        """
        with _told("what is wanted"):
            answer = self._client.get("/wanted")
            _check(answer)
            body = answer.json()
            return None if body is None else Wanted(**body)

    def register(self, session: int, public_key: str) -> None:
        """Make a session's key known to Flower.

        Raises:
            BlobError: It is not wanted now, or cannot be made known.
        """
        with _told(f"session {session}"):
            _check(self._client.post(f"/{session}/key", content=public_key))

    def exchange(
        self, heart: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any] | None, Desired | None, Announcement | None, float] | None:
        """As `adapters.redis.SiteState.exchange`; None while the gate is out of reach."""
        body = {"heart": dict(heart), "steps": [dict(step) for step in steps]}
        try:
            answer = self._client.post(
                f"/{heart['session']}/state", json=body, timeout=STATE_TIMEOUT_S
            )
        except httpx.HTTPError:
            return None
        if answer.status_code != 200:
            return None
        told = answer.json()
        desired, announcement = told["desired"], told["announcement"]
        return (
            told["coordinator"],
            None if desired is None else Desired(**desired),
            None if announcement is None else Announcement(**announcement),
            float(told["server_s"]),
        )

    def measured(self, session: int, watts: float, source: str) -> bool:
        """Tell what this session measured of its power (W); whether it got there."""
        body = {"watts": watts, "source": source}
        try:
            answer = self._client.post(f"/{session}/watts", json=body, timeout=STATE_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == 204

    def record(self, row: Mapping[str, Any]) -> None:
        """Put what was consumed on the run's record; doing it again changes nothing.

        Raises:
            BlobError: The gate cannot be reached.
        """
        with _told("the record"):
            _check(self._client.post(f"/{row['session']}/consumed", json=dict(row)))

    def get(self, key: str) -> bytes:
        """An object, whole and of the right hash.

        Raises:
            UnusableError: It is not there, or is damaged.
            BlobError: The gate cannot be reached.
        """
        with _told(key):
            answer = self._client.get(f"/{key}")
            _check(answer)
        if hashlib.sha256(answer.content).hexdigest() != key.removeprefix("objects/"):
            raise UnusableError(f"{key} is damaged: its hash is another")
        return answer.content

    def put(self, key: str, data: bytes) -> None:
        """Hand in an update: `updates/RUN/ROUND/SITE.SESSION/NAME`.

        Raises:
            BlobError: The gate cannot be reached.
        """
        _, _, number, member, name = key.split("/")
        session = member.removeprefix(f"{self._site}.")
        with _told(key):
            _check(self._client.put(f"/{session}/updates/{int(number)}/{name}", content=data))

    def fetch(self, path: str, place: Path) -> None:
        """Download `data/NAME` or `snapshot/NAME` into a file, whole or not at all.

        Raises:
            UnusableError: It is not there.
            BlobError: The gate cannot be reached, or broke off.
        """
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        with _told(path):
            try:
                with self._client.stream("GET", f"/{path}") as answer, temporary.open("wb") as file:
                    if answer.status_code != 200:
                        answer.read()
                    _check(answer)
                    for piece in answer.iter_bytes(PIECE_BYTES):
                        file.write(piece)
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)

    def keep(self, path: str, place: Path) -> None:
        """Upload a file as `snapshot/NAME`.

        Raises:
            BlobError: The gate cannot be reached.
        """
        size = {"content-length": str(place.stat().st_size)}
        with _told(path), place.open("rb") as file:
            _check(self._client.put(f"/{path}", content=file, headers=size))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Every fault of the network is a BlobError of one line."""
    try:
        yield
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise BlobError(f"{what}: the gate cannot be reached: {reason}") from error


def _check(answer: httpx.Response) -> None:
    if answer.status_code < 300:
        return
    try:
        why = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        why = f"status {answer.status_code}"
    if answer.status_code == 404:
        raise UnusableError(why)
    raise BlobError(f"the gate refuses: {why}")
