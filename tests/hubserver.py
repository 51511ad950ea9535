"""A local server that speaks the part of the Hugging Face Hub's protocol that downloads use.

As the real one, it answers /resolve/ with a redirect to another host, which serves the bytes and
must never see the account's token. Faults are scripted: each is used up by the requests it hits.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.scripted import listening, take

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/some-text"


@dataclass
class Fault:
    """`where` is api, head or body; `times` None is for ever; `at` is where a body is cut."""

    where: str
    kind: str  # a status, or: cut, stall, short, wrong, whole (ignores Range)
    times: int | None = 1
    at: int = 0
    name: str = ""


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """Files of one dataset repository, and what was asked for them."""

    files: dict[str, bytes]
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    small: set[str] = field(default_factory=set)  # not LFS: named by git's SHA-1
    go_on: threading.Event = field(default_factory=threading.Event)  # ends a stall
    endpoint: str = ""
    storage: str = ""

    def etag(self, name: str) -> str:
        content = self.files[name]
        if name in self.small:
            return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return hashlib.sha256(content).hexdigest()

    def bodies(self) -> list[Request]:
        return [request for request in self.requests if request.path.startswith("/storage/")]

    def of_the_repository(self) -> list[Request]:
        """Without what the library asks the Hub about its own surroundings."""
        return [r for r in self.requests if r.path.startswith("/storage/") or REPO in r.path]

    def take_fault(self, where: str, name: str) -> Fault | None:
        return take(self.faults, lambda fault: fault.where == where and fault.name in name)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)

    with listening(_Handler, hub.go_on, hub=hub) as port:
        hub.endpoint, hub.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        self.hub.requests.append(
            Request(self.command, path, headers["Range"], headers["Authorization"])
        )
        if path.startswith(f"/api/datasets/{REPO}/revision/"):
            self._info(path.rsplit("/", 1)[1])
        elif path.startswith(f"/datasets/{REPO}/resolve/{COMMIT}/"):
            self._resolve(path.split(COMMIT + "/")[1])
        elif path.startswith("/storage/"):
            self._body(path.removeprefix("/storage/"))
        else:
            self._refuse(404, {"X-Error-Code": "RepoNotFound"})

    def _info(self, revision: str) -> None:
        fault = self.hub.take_fault("api", revision)
        if fault is not None:
            self._refuse(int(fault.kind))
        elif revision not in ("main", COMMIT):
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [{"rfilename": name} for name in ["README.md", *self.hub.files]]
            content = {"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False}
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str) -> None:
        fault = self.hub.take_fault("head", name)
        if fault is not None and fault.kind.isdigit():
            self._refuse(int(fault.kind), {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{self.hub.etag(name)}"',
            "X-Linked-Size": str(len(self.hub.files[name])),
            "ETag": '"of the redirect"',
            "Location": f"{self.hub.storage}/storage/{name}",
        }
        if fault is not None:  # not a Hub
            headers = {"Location": headers["Location"]}
        self._answer(302, b"", headers)

    def _body(self, name: str) -> None:
        fault = self.hub.take_fault("body", name)
        kind = fault.kind if fault else ""
        if kind.isdigit():
            self._refuse(int(kind))
            return
        content = self.hub.files[name]
        if kind == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        asked = self.headers["Range"]
        if asked is not None and kind != "whole":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self._refuse(416)
                return
        if kind == "short":
            content = content[: len(content) // 2]
        stop = len(content)
        headers = {"Content-Length": str(stop - start), "ETag": '"of the storage"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stop}"
        self._headers(206 if start else 200, headers)
        if fault is not None and kind in ("cut", "stall"):
            self.wfile.write(content[start : start + fault.at])
            if kind == "stall":
                self.hub.go_on.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"", headers or {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._headers(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
