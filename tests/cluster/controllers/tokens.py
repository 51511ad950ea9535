"""Lasting tokens of service accounts, written into the Secrets that ask for them."""

import base64
from collections.abc import Callable
from pathlib import Path

from tests.cluster.api import Api
from tests.cluster.objects import Json

TYPE = "kubernetes.io/service-account-token"
ACCOUNT = "kubernetes.io/service-account.name"


class AccountTokens:
    """Not one of every cluster's controllers: it has to be able to issue tokens."""

    def __init__(self, issue: Callable[[str, str], str], ca: Path) -> None:
        self._issue = issue
        self._ca = ca

    def step(self, api: Api) -> None:
        accounts = {_name(account) for account in api.list("serviceaccounts")}
        for secret in api.list("secrets"):
            namespace, _ = _name(secret)
            wanted = (secret["metadata"].get("annotations") or {}).get(ACCOUNT, "")
            if secret.get("type") == TYPE and (namespace, wanted) in accounts:
                self._fill(api, secret, wanted)

    def _fill(self, api: Api, secret: Json, account: str) -> None:
        if "token" in (secret.get("data") or {}):
            return
        namespace, _ = _name(secret)
        given = {
            "token": self._issue(namespace, account).encode(),
            "ca.crt": self._ca.read_bytes(),
            "namespace": namespace.encode(),
        }
        data = {key: base64.b64encode(value).decode() for key, value in given.items()}
        api.change(secret, lambda fresh: fresh.update(data={**(fresh.get("data") or {}), **data}))


def _name(thing: Json) -> tuple[str, str]:
    return thing["metadata"]["namespace"], thing["metadata"]["name"]
