"""Who may do what: bearer tokens, and the roles that are in the cluster (RBAC)."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.cluster.objects import Json
from tests.cluster.store import Store

_GROUP = "rbac.authorization.k8s.io"
ADMINS = "system:masters"


@dataclass(frozen=True, slots=True)
class User:
    """Who a token stands for."""

    name: str
    groups: tuple[str, ...] = ()

    @property
    def is_admin(self) -> bool:
        return ADMINS in self.groups


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def service_account(namespace: str, name: str) -> User:
    groups = (
        "system:serviceaccounts",
        f"system:serviceaccounts:{namespace}",
        "system:authenticated",
    )
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


@dataclass
class Tokens:
    """The bearer tokens that were handed out."""

    known: dict[str, User] = field(default_factory=dict)

    def issue(self, user: User) -> str:
        token = secrets.token_urlsafe(24)
        self.known[token] = user
        return token


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants to do; a path outside of the API has no resource."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


def _is_meant(subjects: list[Json], user: User, namespace: str) -> bool:
    for subject in subjects:
        match subject["kind"]:
            case "ServiceAccount":
                where = subject.get("namespace", namespace)
                if user.name == f"system:serviceaccount:{where}:{subject['name']}":
                    return True
            case "User" if subject["name"] == user.name:
                return True
            case "Group" if subject["name"] in user.groups:
                return True
    return False


def _has(listed: list[str] | None, value: str) -> bool:
    return "*" in (listed or ()) or value in (listed or ())


def covers(rule: Json, ask: Ask) -> bool:
    """Whether one rule of a role allows something."""
    if not _has(rule.get("verbs"), ask.verb):
        return False
    if ask.path:
        urls = rule.get("nonResourceURLs") or []
        return any(
            url in ("*", ask.path) or (url.endswith("*") and ask.path.startswith(url[:-1]))
            for url in urls
        )
    wanted = f"{ask.resource}/{ask.subresource}" if ask.subresource else ask.resource
    resources = rule.get("resources") or []
    is_resource = _has(resources, wanted) or f"*/{ask.subresource}" in resources
    names = rule.get("resourceNames")
    return (
        _has(rule.get("apiGroups"), ask.group) and is_resource and (not names or ask.name in names)
    )


@dataclass
class Authorizer:
    """Reads the roles and bindings in the store anew for each request."""

    store: Store

    def allows(self, user: User, ask: Ask) -> bool:
        return user.is_admin or any(covers(rule, ask) for rule in self.rules(user, ask.namespace))

    def rules(self, user: User, namespace: str) -> Iterator[Json]:
        """All rules that hold for a user: those of the cluster, and those of a namespace."""
        for _, binding in self.store.select(_GROUP, "clusterrolebindings"):
            if _is_meant(binding.get("subjects") or [], user, ""):
                yield from self._role(binding["roleRef"], "")
        if not namespace:
            return
        for _, binding in self.store.select(_GROUP, "rolebindings", namespace):
            if _is_meant(binding.get("subjects") or [], user, namespace):
                yield from self._role(binding["roleRef"], namespace)

    def _role(self, ref: Json, namespace: str) -> list[Json]:
        plural, where = (
            ("clusterroles", "") if ref["kind"] == "ClusterRole" else ("roles", namespace)
        )
        for key, role in self.store.select(_GROUP, plural, where):
            if key.name == ref["name"]:
                return role.get("rules") or []
        return []

    def escalates(self, user: User, thing: Json, namespace: str) -> str | None:
        """What a role, or the role that a binding names, would give that its writer has not."""
        if user.is_admin:
            return None
        if thing["kind"] in ("Role", "ClusterRole"):
            asks, rules = "escalate", thing.get("rules") or []
        else:
            asks, rules = "bind", self._role(thing["roleRef"], namespace)
        plural = "clusterroles" if thing["kind"].startswith("Cluster") else "roles"
        name = (thing.get("roleRef") or thing["metadata"])["name"]
        if self.allows(user, Ask(asks, _GROUP, plural, namespace=namespace, name=name)):
            return None
        for ask in (ask for rule in rules for ask in _spelt_out(rule, namespace)):
            if not self.allows(user, ask):
                return f"{ask.verb} {ask.resource or ask.path}"
        return None


def _spelt_out(rule: Json, namespace: str) -> Iterator[Ask]:
    for verb in rule["verbs"]:
        for url in rule.get("nonResourceURLs") or []:
            yield Ask(verb, path=url)
        for group in rule.get("apiGroups") or []:
            for resource in rule.get("resources") or []:
                plural, _, subresource = resource.partition("/")
                for name in rule.get("resourceNames") or [""]:
                    yield Ask(verb, group, plural, subresource, namespace, name)
