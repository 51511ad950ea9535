"""Objects around the workloads: identities, disruption budgets, network policies."""

from uncurtail.operator import names
from uncurtail.operator.dialects import Dialect
from uncurtail.operator.fields import Manifest
from uncurtail.operator.poolspec import Disruption, Pool
from uncurtail.operator.spec import Federation


def service_accounts(federation: Federation) -> list[Manifest]:
    """One for the SuperLink and one for all SuperNodes; neither is given a token."""
    link = names.labels(federation)
    nodes = {**link, names.COMPONENT_LABEL: "supernode"}
    nodes |= {"app.kubernetes.io/name": "supernode", "app.kubernetes.io/component": "supernode"}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": names.metadata(federation, name, labels),
            "automountServiceAccountToken": False,
        }
        for name, labels in (
            (names.superlink_name(federation), link),
            (f"{federation.name}-supernode", nodes),
        )
    ]


def link_budget(federation: Federation) -> list[Manifest]:
    """The SuperLink's budget, if one is asked for."""
    budget = federation.spec.superlink.pod_disruption_budget
    if budget is None:
        return []
    name = names.superlink_name(federation)
    labels, selector = names.labels(federation), names.selector(federation)
    return [_budget(names.metadata(federation, name, labels), selector, budget)]


def pool_budget(federation: Federation, pool: Pool) -> Manifest:
    """A pool's budget (of a StatefulSet: draining a node ignores DaemonSets)."""
    budget = pool.pod_disruption_budget or Disruption(max_unavailable=1)
    name = names.supernodes_name(federation, pool)
    meta = names.metadata(federation, name, names.labels(federation, pool))
    return _budget(meta, names.selector(federation, pool), budget)


def network_policies(federation: Federation, dialect: Dialect) -> list[Manifest]:
    """Who may open connections to whom; replies and outgoing ones are not restricted.

    With one port (Flower 1.40 and newer) a policy cannot tell the Control API from the rest:
    whoever may join may also submit code. Ingress without a network policy engine is open.
    """
    spec = federation.spec
    if not spec.network_policy.enabled:
        return []
    ours = {"podSelector": {"matchLabels": _nodes(federation)}}
    ports = dialect.link_ports(spec.isolation_mode)
    join = ports["http"] if dialect.one_port else ports["fleet"]
    rules = [{"from": [ours], "ports": [{"port": join, "protocol": "TCP"}]}]
    if spec.network_policy.allow_from:
        allowed = [{"port": port, "protocol": "TCP"} for port in sorted(set(ports.values()))]
        rules.append({"from": list(spec.network_policy.allow_from), "ports": allowed})
    link = names.labels(federation)
    return [
        _policy(
            names.metadata(federation, names.superlink_name(federation), link),
            names.selector(federation),
            rules,
        ),
        _policy(
            names.metadata(federation, f"{federation.name}-supernode", link),
            _nodes(federation),
            [],
        ),
    ]


def _nodes(federation: Federation) -> dict[str, str]:
    return {
        "app.kubernetes.io/instance": federation.name,
        "app.kubernetes.io/name": "supernode",
    }


def _policy(meta: Manifest, selector: dict[str, str], ingress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": selector},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _budget(meta: Manifest, selector: dict[str, str], budget: Disruption) -> Manifest:
    limits = budget.model_dump(by_alias=True, exclude_none=True)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta,
        "spec": {"selector": {"matchLabels": selector}, **limits},
    }
