"""What exists: the child objects and pods of a Federation, as the API server lists them."""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from uncurtail.operator import names
from uncurtail.operator.fields import Manifest
from uncurtail.operator.poolspec import Pool
from uncurtail.operator.spec import Federation

_ORDINAL = re.compile(r"-(\d+)$")


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """An object's kind and name; a Federation's children share its namespace."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a plan may depend on beside the spec and the time.

    `children`: objects of the kinds that the operator makes (and Deployments, which others made)
    that are owned by the Federation or have a name that it wants. `pods`: those of its pools.
    """

    children: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    status: Manifest = field(default_factory=dict)  # the Federation's own, as it was last written


def ref_of(manifest: Manifest) -> Ref:
    """Which object this is."""
    return Ref(manifest["kind"], manifest["metadata"]["name"])


def is_owned(manifest: Manifest, federation: Federation) -> bool:
    """Whether this very Federation controls the object; another of the same name does not."""
    owners = manifest["metadata"].get("ownerReferences") or []
    return any(o.get("controller") and o.get("uid") == federation.uid for o in owners)


def is_ending(manifest: Manifest) -> bool:
    """Whether somebody has deleted it, and it is not gone yet."""
    return bool(manifest["metadata"].get("deletionTimestamp"))


def annotation(manifest: Manifest, key: str) -> str | None:
    """An annotation, or None."""
    value = (manifest["metadata"].get("annotations") or {}).get(key)
    return None if value is None else str(value)


def pods_of(
    pods: Iterable[Manifest], federation: Federation, pool: str, workload: Ref
) -> list[Manifest]:
    """The pods of a pool that this workload controls, or that nobody does, by name."""
    wanted = {"app.kubernetes.io/instance": federation.name, names.POOL_LABEL: pool}
    found = [
        pod
        for pod in pods
        if wanted.items() <= (pod["metadata"].get("labels") or {}).items()
        and _controller(pod) in (None, workload)
    ]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def abandoned(
    pods: Iterable[Manifest], federation: Federation, wanted: Container[Ref]
) -> dict[str, list[Manifest]]:
    """Pods of ours that nobody controls and no wanted StatefulSet will take over, by pool.

    A StatefulSet that is made anew leaves its pods for a moment; should it not be wanted any more
    by then, nobody else would ever end them.
    """
    ours = {
        "app.kubernetes.io/instance": federation.name,
        "app.kubernetes.io/managed-by": names.MANAGER,
    }
    left: dict[str, list[Manifest]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        pool = pool_label(pod)
        if pool is None or is_ending(pod) or _controller(pod) is not None:
            continue
        taken = Ref("StatefulSet", names.workload_name(federation, pool)) in wanted
        if not taken and ours.items() <= (pod["metadata"].get("labels") or {}).items():
            left.setdefault(pool, []).append(pod)
    return left


def _controller(pod: Manifest) -> Ref | None:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((Ref(o["kind"], o["name"]) for o in owners if o.get("controller")), None)


def pool_label(manifest: Manifest) -> str | None:
    """Which pool an object belongs to."""
    value = (manifest["metadata"].get("labels") or {}).get(names.POOL_LABEL)
    return None if value is None else str(value)


def ordinal(pod: Manifest) -> int:
    """A StatefulSet pod's number; 0 where there is none."""
    found = _ORDINAL.search(pod["metadata"]["name"])
    return int(found[1]) if found else 0


def declared_replicas(pool: Pool, scale: Manifest | None) -> int:
    """What was asked for last: in the Federation, or at the pool's SuperNodePool since."""
    said = pool.replicas or 0
    if scale is None or scale["spec"].get("federationReplicas") != said:
        return said
    return int(scale["spec"].get("replicas", said))


def iso(unix_s: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix_or_none(text: str | None) -> float | None:
    """A time that Kubernetes, or someone, wrote; None if it is none."""
    try:
        parsed = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return None if parsed.tzinfo is None else parsed.timestamp()
