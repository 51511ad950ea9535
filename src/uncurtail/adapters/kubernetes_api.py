"""The API of a Kubernetes cluster: plain objects in, plain objects out. Extra: `kubernetes`.

Addresses, certificates, tokens and their renewal are lightkube's. Objects are not its models: what
an operator compares and writes must be exactly what the server holds.
"""

import importlib.util
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncurtail.adapters.http import retry_after_seconds
from uncurtail.errors import UserError

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

Manifest = dict[str, Any]
Answered = Callable[[str, str], None]  # method and status, for each answer

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
PAGE = 500  # objects in a part of a list
WATCH_S = 290  # a watch is asked for anew before load balancers cut what seems idle


class KubeError(Exception):
    """A call that failed, in one line. `code` is None where no answer came.

    `unsure`: it may have happened all the same. `transient`: the same call may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        unsure: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.unsure = unsure
        self.retry_after_s = retry_after_s

    @property
    def transient(self) -> bool:
        """Whether it is worth another try: lost, outrun, or too much for the server."""
        return self.code is None or self.code in (404, 409, 410, 429) or self.code >= 500


@dataclass(frozen=True, slots=True)
class Kind:
    """Where objects of a kind are found."""

    name: str
    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str = "", part: str = "") -> str:
        """Of a list (None: in every namespace), an object, or a part of one."""
        root = "/api" if "/" not in self.api_version else "/apis"
        where = "" if namespace is None else f"/namespaces/{namespace}"
        tail = "".join(f"/{each}" for each in (name, part) if each)
        return f"{root}/{self.api_version}{where}/{self.plural}{tail}"


def require(package: str = "lightkube") -> None:
    """See to it, before anything starts, that this can work.

    Raises:
        UserError: A package of the extra is missing.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"Kubernetes needs the package {package}: pip install 'uncurtail[kubernetes]'"
        )


def settings(context: str | None = None) -> "SingleConfig":
    """Where the API server is, and who we are there.

    Args:
        context: Of the kubeconfig; None is its current one, and inside a cluster the pod's own
            service account.

    Raises:
        UserError: There is no such context, or nothing says where a cluster is.
    """
    require()
    from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig
    from lightkube.core.exceptions import ConfigError

    path = Path(os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG).expanduser()
    try:
        whole = KubeConfig.from_env() if context is None else KubeConfig.from_file(path)
        found = whole.get(context)
    except (ConfigError, KeyError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"no Kubernetes cluster to talk to ({said}): name a kubeconfig in KUBECONFIG, and one "
            "of its contexts (kubectl config get-contexts)"
        ) from None
    assert found is not None
    return found


class Api:
    """One cluster, for code that may wait. Safe to share between threads."""

    def __init__(
        self,
        config: "SingleConfig",
        *,
        timeout_s: float = 15.0,
        answered: Answered | None = None,
        keep: bool = True,
    ) -> None:
        """`keep`: connections stay open between calls, until `close`."""
        import httpx2
        from lightkube.config.client_adapter import Client, ConnectionParams

        self.namespace = config.namespace or "default"
        params = ConnectionParams(timeout=httpx2.Timeout(timeout_s))
        self._http = Client(config, params)
        if not keep:
            self._http.headers["Connection"] = "close"
        self._answered = answered

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def get(self, path: str, selector: str = "") -> Manifest:
        """Read one object, or a list of those with these labels."""
        return self.call("GET", path, labelSelector=selector)

    def find(self, path: str) -> Manifest | None:
        """Read an object that may not be there."""
        try:
            return self.get(path)
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    def apply(self, path: str, thing: Manifest, manager: str, *, force: bool = True) -> Manifest:
        """Server-side apply: these fields are `manager`'s, and those it no longer names go."""
        return self.call(
            "PATCH", path, thing, kind=APPLY, fieldManager=manager, force=json.dumps(force)
        )

    def merge(self, path: str, patch: Manifest, manager: str) -> Manifest:
        """Change some fields; None takes one away."""
        return self.call("PATCH", path, patch, kind=MERGE, fieldManager=manager)

    def delete(self, path: str, uid: str = "", propagation: str = "Background") -> Manifest:
        """Begin to delete an object, if it is still the one of this uid."""
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        if uid:
            options["preconditions"] = {"uid": uid}
        return self.call("DELETE", path, options)

    def call(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        kind: str = JSON,
        **query: str,
    ) -> Manifest:
        """Ask the server.

        Raises:
            KubeError: It refused, failed, or did not answer.
        """
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": kind}
        with _asking():
            answer = self._http.request(
                method, path, params=query, content=content, headers=headers
            )
            if self._answered is not None:
                self._answered(method, str(answer.status_code))
            if not answer.is_success:
                raise _refused(answer.status_code, answer.content, answer.headers)
            found: Manifest = answer.json()
            return found


class Stream:
    """The same cluster, for what goes on for ever: lists and watches."""

    def __init__(
        self, config: "SingleConfig", *, timeout_s: float = 15.0, answered: Answered | None = None
    ) -> None:
        import httpx2
        from lightkube.config.client_adapter import AsyncClient, ConnectionParams

        self._patience = httpx2.Timeout(timeout_s)
        # A watch without news: the server ends it by itself, and marks about once a minute.
        self._long = httpx2.Timeout(timeout_s, read=WATCH_S + timeout_s)
        self._http = AsyncClient(config, ConnectionParams(timeout=self._patience))
        self._answered = answered

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def list(self, path: str, selector: str) -> tuple[list[Manifest], str]:
        """Everything there is now, and the version from which to watch.

        Raises:
            KubeError: The server refused, failed, or did not answer.
        """
        found: list[Manifest] = []
        query = {"labelSelector": selector, "limit": str(PAGE)}
        while True:
            with _asking():
                answer = await self._http.get(path, params=query)
                self._count("GET", answer.status_code)
                if not answer.is_success:
                    raise _refused(answer.status_code, answer.content, answer.headers)
                page = answer.json()
            found += page.get("items") or []
            token = page["metadata"].get("continue")
            if not token:
                return found, str(page["metadata"]["resourceVersion"])
            query["continue"] = token

    async def watch(self, path: str, selector: str, since: str) -> AsyncIterator[Manifest]:
        """What happens from a version on, until the server ends it.

        Raises:
            KubeError: As above; `code` 410 where the version is too old.
        """
        query = {
            "labelSelector": selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(WATCH_S),
        }
        with _asking():
            async with self._http.stream("GET", path, params=query, timeout=self._long) as answer:
                self._count("WATCH", answer.status_code)
                if not answer.is_success:
                    raise _refused(answer.status_code, await answer.aread(), answer.headers)
                async for line in answer.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        said = event["object"]
                        raise KubeError(str(said.get("message", "")), code=said.get("code", 500))
                    yield event

    def _count(self, method: str, status: int) -> None:
        if self._answered is not None:
            self._answered(method, str(status))


@contextmanager
def _asking() -> Iterator[None]:
    """Turn whatever the network does into one line, and into whether it may have happened."""
    import httpx2
    from lightkube.core.exceptions import ConfigError

    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise KubeError(f"the API server cannot be reached ({type(error).__name__})") from None
    except httpx2.HTTPError as error:
        kind = type(error).__name__
        raise KubeError(
            f"the API server does not answer, or breaks off ({kind})", unsure=True
        ) from None
    except ConfigError as error:
        raise KubeError(f"no credentials: {' '.join(str(error).split())}") from None
    except (ValueError, LookupError) as error:
        what = " ".join(str(error).split())[:120]
        raise KubeError(f"the API server answers in another form ({what})", unsure=True) from None


def _refused(code: int, body: bytes, headers: Any) -> KubeError:
    try:
        said = json.loads(body)["message"]
    except (ValueError, LookupError, TypeError):
        said = body[:120].decode(errors="replace")
    pause_s = retry_after_seconds(headers.get("Retry-After"))
    line = " ".join(str(said).split())[:400]
    return KubeError(f"{line} ({code})", code=code, unsure=code >= 500, retry_after_s=pause_s)
