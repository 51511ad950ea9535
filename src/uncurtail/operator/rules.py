"""What a Federation may not say: each rule in CEL for the API server, and in Python for us.

A test holds each pair to the same verdicts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from uncurtail.operator.dialects import dialect_of
from uncurtail.operator.fields import Manifest
from uncurtail.operator.nodeconfig import PLACEHOLDER
from uncurtail.operator.poolspec import Disruption, Pool
from uncurtail.operator.spec import Federation, FederationSpec, SuperLink

# A StatefulSet's name, a dash and a hash of 10 characters go into a label of its pods: 63 at most.
LONGEST_WORKLOAD_NAME = 52
_LONGEST_FEDERATION = LONGEST_WORKLOAD_NAME - len("-superlink")
_LONGEST_WITH_POOL = LONGEST_WORKLOAD_NAME - len("-supernode-")
_NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
RESERVED = "flower-"  # of our own volumes


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must hold, said twice."""

    message: str
    cel: str
    holds: Callable[[FederationSpec], bool]


@dataclass(frozen=True, slots=True)
class NameRule:
    """The same about names, which only the root of the schema knows."""

    message: str
    cel: str
    holds: Callable[[Federation], bool]


def _pools(test: Callable[[Pool], bool]) -> Callable[[FederationSpec], bool]:
    return lambda spec: all(test(pool) for pool in spec.supernodes.pools)


def _one_of_two(budget: Disruption | None) -> bool:
    return budget is None or (budget.min_available is None) != (budget.max_unavailable is None)


_ALL = "self.supernodes.pools.all(p, {})"
_BUDGET = "{0}.podDisruptionBudget"
_ONE_OF = f"!has({_BUDGET}) || (has({_BUDGET}.minAvailable) != has({_BUDGET}.maxUnavailable))"
_HAS_CLIENT_IMAGE = (
    "has(p.images) && has(p.images.superexecClientApp) && p.images.superexecClientApp != ''"
)

SPEC_RULES: tuple[Rule, ...] = (
    Rule(
        "supernodes.pools: name at least one pool",
        "size(self.supernodes.pools) > 0",
        lambda spec: len(spec.supernodes.pools) > 0,
    ),
    Rule(
        "replicas: a DaemonSet has one SuperNode on each node; leave it out, or use mode "
        "StatefulSet",
        "self.mode != 'DaemonSet' || " + _ALL.format("!has(p.replicas)"),
        lambda spec: spec.mode != "DaemonSet" or _pools(lambda p: p.replicas is None)(spec),
    ),
    Rule(
        "replicas: say how many SuperNodes each pool has (mode StatefulSet)",
        "self.mode != 'StatefulSet' || " + _ALL.format("has(p.replicas)"),
        lambda spec: spec.mode != "StatefulSet" or _pools(lambda p: p.replicas is not None)(spec),
    ),
    Rule(
        "superlink.superexecImage: isolation mode process needs it",
        "self.isolationMode != 'process' || "
        "(has(self.superlink.superexecImage) && self.superlink.superexecImage != '')",
        lambda spec: spec.isolation_mode != "process" or bool(spec.superlink.superexec_image),
    ),
    Rule(
        "images.superexecClientApp: isolation mode process needs it in each pool",
        "self.isolationMode != 'process' || " + _ALL.format(_HAS_CLIENT_IMAGE),
        lambda spec: (
            spec.isolation_mode != "process"
            or _pools(lambda p: bool(p.images.superexec_client_app))(spec)
        ),
    ),
    Rule(
        "superlink.superexecImage: isolation mode subprocess has no SuperExec container",
        "self.isolationMode != 'subprocess' || "
        "!has(self.superlink.superexecImage) || self.superlink.superexecImage == ''",
        lambda spec: spec.isolation_mode != "subprocess" or not spec.superlink.superexec_image,
    ),
    Rule(
        "images.superexecClientApp: isolation mode subprocess has no SuperExec container",
        "self.isolationMode != 'subprocess' || " + _ALL.format(f"!({_HAS_CLIENT_IMAGE})"),
        lambda spec: (
            spec.isolation_mode != "subprocess"
            or _pools(lambda p: not p.images.superexec_client_app)(spec)
        ),
    ),
    Rule(
        "gpu.vendor: mountAll must know whose GPUs to mount",
        _ALL.format("!has(p.gpu) || !has(p.gpu.mountAll) || !p.gpu.mountAll || has(p.gpu.vendor)"),
        _pools(lambda p: not p.gpu.mount_all or p.gpu.vendor is not None),
    ),
    Rule(
        "insecure: must be false with tls",
        "!has(self.tls) || (has(self.insecure) && !self.insecure)",
        lambda spec: spec.tls is None or not spec.insecure,
    ),
    Rule(
        "auth: SuperNode authentication needs tls",
        "has(self.tls) || " + _ALL.format("!has(p.auth)"),
        lambda spec: spec.tls is not None or _pools(lambda p: p.auth is None)(spec),
    ),
    Rule(
        "auth: either each pool has keys, or none",
        _ALL.format("has(p.auth)") + " || " + _ALL.format("!has(p.auth)"),
        lambda spec: len({p.auth is None for p in spec.supernodes.pools}) <= 1,
    ),
    Rule(
        "superlink.supernodeKeys: only SuperNodes with private keys are registered; it needs tls, "
        "and auth in each pool",
        "!has(self.superlink.supernodeKeys) || (has(self.tls) && "
        + _ALL.format("has(p.auth)")
        + ")",
        lambda spec: (
            spec.superlink.supernode_keys is None
            or (spec.tls is not None and _pools(lambda p: p.auth is not None)(spec))
        ),
    ),
    Rule(
        "superexecAuth: only isolation mode process has a SuperExec to trust",
        "!has(self.superexecAuth) || self.isolationMode == 'process'",
        lambda spec: spec.superexec_auth is None or spec.isolation_mode == "process",
    ),
    Rule(
        "podDisruptionBudget: give exactly one of minAvailable and maxUnavailable",
        f"({_ONE_OF.format('self.superlink')}) && " + _ALL.format(_ONE_OF.format("p")),
        lambda spec: (
            _one_of_two(spec.superlink.pod_disruption_budget)
            and _pools(lambda p: _one_of_two(p.pod_disruption_budget))(spec)
        ),
    ),
)

NAME_RULES: tuple[NameRule, ...] = (
    NameRule(
        f"metadata.name: lower-case letters, digits and dashes, at most {_LONGEST_FEDERATION} "
        "of them, beginning with a letter: Services carry it",
        f"size(self.metadata.name) <= {_LONGEST_FEDERATION} && "
        f"self.metadata.name.matches('{_NAME_PATTERN}')",
        lambda it: (
            len(it.name) <= _LONGEST_FEDERATION and re.search(_NAME_PATTERN, it.name) is not None
        ),
    ),
    NameRule(
        f"pools.name: with metadata.name at most {_LONGEST_WITH_POOL} characters together: labels "
        "of pods carry both",
        "self.spec.supernodes.pools.all(p, "
        f"size(self.metadata.name) + size(p.name) <= {_LONGEST_WITH_POOL})",
        lambda it: all(
            len(it.name) + len(p.name) <= _LONGEST_WITH_POOL for p in it.spec.supernodes.pools
        ),
    ),
)


def problems(federation: Federation) -> tuple[str, ...]:
    """Everything that keeps this Federation from being built; empty if nothing does."""
    spec = federation.spec
    broken = [rule.message for rule in SPEC_RULES if not rule.holds(spec)]
    broken += [rule.message for rule in NAME_RULES if not rule.holds(federation)]
    names = [pool.name for pool in spec.supernodes.pools]
    broken += [
        f"pools: two are named {n!r}" for n in sorted({n for n in names if names.count(n) > 1})
    ]
    return (*broken, *_version(spec), *_ports(spec), *_volumes(spec), *_node_configs(spec))


def warnings(federation: Federation) -> tuple[str, ...]:
    """What is configured and has no effect, or less than it seems."""
    spec = federation.spec
    said: list[str] = []
    for where, ours, template in (
        ("superlink", _link_containers(spec), spec.superlink.pod_template),
        *(
            (f"pool {p.name}", {"supernode", "superexec-clientapp"}, p.pod_template)
            for p in spec.supernodes.pools
        ),
    ):
        extra = [c.get("name", "?") for c in _containers(template) if c.get("name") not in ours]
        if extra:
            said.append(
                f"{where}: podTemplate container {extra[0]!r} is ignored: only "
                f"{' and '.join(sorted(ours))} are merged; a sidecar is an initContainer with "
                "restartPolicy Always"
            )
    if spec.mode == "DaemonSet":
        said += [
            f"pool {p.name}: volumeClaimTemplates have no effect in mode DaemonSet"
            for p in spec.supernodes.pools
            if p.volume_claim_templates
        ]
    if dialect_of(spec).guessed:
        said.append("version: neither it nor the SuperLink image's tag says which Flower this is")
    return tuple(said)


def _link_containers(spec: FederationSpec) -> set[str]:
    asked = set() if spec.superlink.supernode_keys is None else {"supernode-keys"}
    return {"superlink", "superexec-serverapp"} | asked


def _containers(template: Manifest | None) -> list[Manifest]:
    return ((template or {}).get("spec") or {}).get("containers") or []


def _version(spec: FederationSpec) -> list[str]:
    choice = dialect_of(spec)
    if choice.dialect is None:
        return [choice.why]
    wants = {
        "auth": any(p.auth for p in spec.supernodes.pools),
        "superexecAuth": spec.superexec_auth is not None,
    }
    if choice.dialect.one_port:
        return []
    return [f"{name}: needs Flower 1.40 or newer" for name, wanted in wants.items() if wanted]


def _ports(spec: FederationSpec) -> list[str]:
    ports = spec.superlink.service.ports
    numbers = [ports.grpc, ports.server_app_io, ports.extra, ports.http]
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    return [f"superlink.service.ports: {n} is given twice" for n in twice]


def _volumes(spec: FederationSpec) -> list[str]:
    owners: list[tuple[str, SuperLink | Pool]] = [("superlink", spec.superlink)]
    owners += [(f"pool {pool.name}", pool) for pool in spec.supernodes.pools]
    return [
        f"{where}: volume name {name!r} is taken: names that begin with {RESERVED!r} are ours"
        for where, owner in owners
        for name in (
            *(volume["name"] for volume in owner.volumes),
            *(claim["metadata"]["name"] for claim in owner.volume_claim_templates),
        )
        if name.startswith(RESERVED)
    ]


def _node_configs(spec: FederationSpec) -> list[str]:
    found = []
    for pool in spec.supernodes.pools:
        for key, value in pool.node_config.items():
            names = set(PLACEHOLDER.findall(value))
            where = f"pool {pool.name}: nodeConfig.{key}"
            if re.fullmatch(r"[A-Za-z0-9_.-]+", key) is None:
                found.append(f"{where}: a key has letters, digits, dashes, underscores and dots")
            if spec.mode == "DaemonSet" and names & {"index", "replicas"}:
                found.append(f"{where}: {{index}} and {{replicas}} need mode StatefulSet")
    return found
