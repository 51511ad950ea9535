"""Two clients for tests: plain HTTP, which shows every byte, and kubectl, which is not ours."""

import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.binaries import find
from tests.cluster.cluster import Cluster
from tests.cluster.objects import Json

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


class Rest:
    """The API by path; an answer that is no success is returned as it came."""

    def __init__(self, url: str, ca: Path, token: str):
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=ca),
            timeout=20,
        )

    @classmethod
    def of(cls, cluster: Cluster, token: str | None = None) -> Self:
        return cls(cluster.url, cluster.ca, token or cluster.admin_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> httpx.Response:
        return self._http.get(path, params=query)

    def list(self, path: str, **query: str | int) -> list[Json]:
        return list(self.done(self.get(path, **query))["items"])

    def post(self, path: str, thing: Json, **query: str) -> httpx.Response:
        return self._http.post(path, json=thing, params=query)

    def put(self, path: str, thing: Json, **query: str) -> httpx.Response:
        return self._http.put(path, json=thing, params=query)

    def patch(self, path: str, body: object, kind: str, **query: str) -> httpx.Response:
        headers = {"Content-Type": kind}
        return self._http.patch(path, content=json.dumps(body), params=query, headers=headers)

    def apply(
        self, path: str, thing: Json, manager: str, is_forced: bool = False
    ) -> httpx.Response:
        force = "true" if is_forced else "false"
        return self.patch(path, thing, APPLY, fieldManager=manager, force=force)

    def delete(self, path: str, **query: str | int) -> httpx.Response:
        return self._http.delete(path, params=query)

    @contextmanager
    def watch(self, path: str, **query: str | int) -> Iterator[Iterator[Json]]:
        """The events of a watch as they come."""
        with self._http.stream("GET", path, params={"watch": "true", **query}) as answer:
            yield (json.loads(line) for line in answer.iter_lines())

    @staticmethod
    def done(answer: httpx.Response) -> Json:
        """What a request that must succeed has answered."""
        assert answer.is_success, answer.text
        return dict(answer.json())


@dataclass
class Kubectl:
    """The real kubectl against a cluster, with a home of its own."""

    program: str
    kubeconfig: Path
    home: Path
    patience_s: int

    @classmethod
    def of(cls, cluster: Cluster, token: str | None = None, name: str = "admin") -> "Kubectl":
        return cls.named(cluster.kubeconfig(token, name), cluster.folder)

    @classmethod
    def named(cls, kubeconfig: Path, home: Path, patience_s: int = 20) -> "Kubectl":
        program = find("kubectl")
        if program is None:
            pytest.skip("kubectl is not installed")
        return cls(program, kubeconfig, home, patience_s)

    def __call__(self, *words: str, sent: Json | None = None, fails: bool = False) -> str:
        """Run it; `sent` is its standard input. What it printed, errors included."""
        text = json.dumps(sent) if sent is not None else None
        done = subprocess.run(
            [
                self.program,
                f"--kubeconfig={self.kubeconfig}",
                f"--request-timeout={self.patience_s}s",
                *words,
            ],
            input=text,
            stdin=None if text else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.patience_s + 25.0,
            env={"HOME": str(self.home)},
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *words: str) -> Json:
        return dict(json.loads(self(*words, "-o", "json")))
