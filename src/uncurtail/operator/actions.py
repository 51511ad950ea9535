"""What a plan may ask for, and who carries it out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import Observed, Ref


@dataclass(frozen=True, slots=True)
class Create:
    """Make this object; that it exists already is an error."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Update:
    """Make this object what the manifest says, by server-side apply as the operator's own."""

    manifest: Manifest
    reason: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object: with its pods first (Foreground), or leaving them (Orphan)."""

    ref: Ref
    uid: str  # a precondition: never another of the same name
    propagation: Literal["Foreground", "Orphan"]
    reason: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Set `spec.replicas` of a StatefulSet, and nothing else."""

    ref: Ref
    replicas: int
    reason: str


@dataclass(frozen=True, slots=True)
class Annotate:
    """Set an annotation of a pod; None takes it off."""

    pod: str
    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """Write the status of a SuperNodePool."""

    ref: Ref
    status: Manifest


Action = Create | Update | Delete | Scale | Annotate | PatchStatus


@dataclass(frozen=True, slots=True)
class Event:
    """What a user should read in `kubectl describe federation`.

    `after`: how many of the plan's actions must have been carried out for it to be true.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    after: int = 0


class Cluster(Protocol):
    """The API server, as one Federation's reconciliation needs it."""

    def observe(self, federation: Manifest) -> Observed:
        """Everything that exists of this Federation."""

    def apply(self, action: Action) -> None:
        """Carry out one action; an error of the API server is raised."""

    def report(self, status: Manifest, events: Iterable[Event]) -> None:
        """Write the Federation's status where it differs, and post events."""
