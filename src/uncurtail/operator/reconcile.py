"""One reconciliation: look, plan, carry out, report; what is refused is said in the status."""

from dataclasses import dataclass

from uncurtail.operator import status
from uncurtail.operator.actions import Action, Annotate, Cluster, Create, Update
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import ref_of
from uncurtail.operator.plan import Plan, plan


class ApiError(Exception):
    """The API server did not do it; `transient` if trying again may help (a conflict, a loss)."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was planned, and what failed, if something did."""

    plan: Plan
    failure: str | None = None


def reconcile(cluster: Cluster, federation: Manifest, now: float) -> Outcome:
    """Bring a Federation one step closer to what it should be.

    The first action that fails ends the attempt; the next one plans from what exists by then.
    """
    observed = cluster.observe(federation)
    decided = plan(federation, observed, now)
    failure: str | None = None
    said, events = decided.status, list(decided.events)
    for done, action in enumerate(decided.actions):
        try:
            cluster.apply(action)
        except ApiError as error:
            failure = f"{_what(action)}: {error}"
            events = [event for event in events if event.after <= done]
            if not error.transient:
                refused = status.refused(said, observed.status, failure, now)
                said, events = refused.status, [*events, *refused.events]
            break
    cluster.report(said, events)
    return Outcome(decided, failure)


def _what(action: Action) -> str:
    verb = type(action).__name__.lower()
    match action:
        case Create(manifest=manifest) | Update(manifest=manifest):
            return f"{verb} {ref_of(manifest)}"
        case Annotate(pod=pod):
            return f"{verb} Pod {pod}"
        case _:
            return f"{verb} {action.ref}"
