"""Leaving in order: pods that have to go are told, and stopped when they are done or out of time.

The state is in the pods' own annotations, so an operator that dies forgets nothing, and whoever
drains (a site, its coordinator, a person) says so with `flwr.exalsius.ai/drained`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from uncurtail.operator import names
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import annotation, is_ending, unix_or_none

# A mark ahead of our clock by more than this is no time that we can count from: set it again.
_CLOCK_SKEW_S = 5.0


@dataclass(frozen=True, slots=True)
class Drained:
    """Where a drain stands.

    `mark`: pods to tell. `waiting`: pods that are not done. `wake_s`: when the next one is out of
    time, from now; None if nothing is waited for.
    """

    mark: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    wake_s: float | None = None


def drain(doomed: Sequence[Manifest], now: float, timeout_s: float) -> Drained:
    """What to do about pods that have to go.

    Args:
        doomed: The pods.
        now: Unix seconds.
        timeout_s: How long a pod may take from when it was told; 0 tells nobody.

    Returns:
        Whom to tell, whom to wait for, and until when.
    """
    mark: list[str] = []
    waiting: list[str] = []
    wakes: list[float] = []
    for pod in doomed:
        left_s = _left_s(pod, now, timeout_s)
        if left_s == 0.0:
            continue
        name = str(pod["metadata"]["name"])
        waiting.append(name)
        if left_s is None:
            mark.append(name)
        wakes.append(timeout_s if left_s is None else left_s)
    return Drained(tuple(mark), tuple(waiting), min(wakes, default=None))


def spared(pods: Sequence[Manifest]) -> tuple[str, ...]:
    """Pods that were told to leave and may stay after all."""
    return tuple(
        str(pod["metadata"]["name"])
        for pod in pods
        if not is_ending(pod) and annotation(pod, names.DRAIN_REQUESTED_AT) is not None
    )


def _left_s(pod: Manifest, now: float, timeout_s: float) -> float | None:
    """Seconds that this pod may still take: 0 if it is done, None if it was never told."""
    running = (pod.get("status") or {}).get("phase", "Running") == "Running"
    if timeout_s <= 0 or not running or is_ending(pod):
        return 0.0
    since = unix_or_none(annotation(pod, names.DRAIN_REQUESTED_AT))
    if since is None or since > now + _CLOCK_SKEW_S:
        return None
    if annotation(pod, names.DRAINED) is not None:
        return 0.0
    return max(0.0, timeout_s - max(0.0, now - since))
