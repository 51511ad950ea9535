"""A Federation as the objects that should exist: the same ones for the same spec, always."""

import hashlib
import json

from uncurtail.operator import guards, names, pool, superlink
from uncurtail.operator.dialects import dialect_of
from uncurtail.operator.fields import Manifest
from uncurtail.operator.spec import Federation

# What the API server lets nobody change in a StatefulSet, and the operator may.
_FIXED = ("serviceName", "podManagementPolicy", "volumeClaimTemplates")


def build_children(federation: Federation) -> list[Manifest]:
    """Every child object in the order to make them; `rules.problems` must have found nothing."""
    spec = federation.spec
    dialect = dialect_of(spec).dialect
    assert dialect is not None, "rules.problems would have said so"
    children = [
        *guards.service_accounts(federation),
        *guards.network_policies(federation, dialect),
        superlink.service(federation, dialect),
        *guards.link_budget(federation),
        superlink.stateful_set(federation, dialect),
    ]
    for each in spec.supernodes.pools:
        if spec.mode == "StatefulSet":
            children += [
                pool.headless_service(federation, each),
                pool.scale(federation, each),
                guards.pool_budget(federation, each),
            ]
        children.append(pool.workload(federation, each, dialect))
    return [_stamped(child) for child in children]


def _stamped(child: Manifest) -> Manifest:
    """With the hashes of what it says, apart from its scale, which is not the template's."""
    spec = {k: v for k, v in child.get("spec", {}).items() if not _is_scale(child, k)}
    meta = {k: v for k, v in child["metadata"].items() if k != "ownerReferences"}
    hashes = {names.SPEC_HASH: _hash({**child, "metadata": meta, "spec": spec})}
    if child["kind"] == "StatefulSet":
        hashes[names.FIXED_HASH] = _hash({key: spec[key] for key in _FIXED})
    annotations = {**child["metadata"].get("annotations", {}), **hashes}
    stamped = {**child, "metadata": {**child["metadata"], "annotations": annotations}}
    # Nothing shared between children, or with the spec: whoever changes one changes that one.
    copied: Manifest = json.loads(json.dumps(stamped))
    return copied


def _is_scale(child: Manifest, key: str) -> bool:
    match child["kind"]:
        case "StatefulSet":
            return key == "replicas"
        case "SuperNodePool":
            return key in ("replicas", "federationReplicas")
        case _:
            return False


def _hash(value: Manifest) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
