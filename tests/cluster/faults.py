"""Faults that a test plans for the API server: which requests are hit, and by what."""

from dataclasses import dataclass, field

from tests.cluster.access import Ask


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error instead of doing what was asked."""

    code: int
    reason: str = "InternalError"
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Slow:
    """Do what was asked after a while."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Do what was asked, and cut the connection before the answer."""


@dataclass(frozen=True, slots=True)
class Outrun:
    """Let somebody else write to the object just before: who named a version has a conflict.

    The honest conflict: unlike one that is only answered, it comes with a change that watches see.
    """


Fault = Refuse | Slow | LoseAnswer | Outrun

CONFLICT = Refuse(409, "Conflict")
BROKEN = Refuse(500)
TOO_MANY = Refuse(429, "TooManyRequests", retry_after_s=1)


@dataclass
class Plan:
    """A fault, the requests it is for, and how many of them it lets pass before and hits then."""

    fault: Fault
    verbs: frozenset[str]
    plural: str = ""
    subresource: str | None = None
    name: str = ""
    after: int = 0
    times: int = 1
    seen: int = 0

    def strikes(self, ask: Ask) -> bool:
        is_meant = (
            (not self.verbs or ask.verb in self.verbs)
            and self.plural in ("", ask.resource)
            and self.name in ("", ask.name)
            and self.subresource in (None, ask.subresource)
            and not ask.path
        )
        if not is_meant:
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


WRITES = frozenset({"create", "update", "patch", "delete"})


@dataclass
class Faults:
    """All faults that are planned; the first that strikes is taken."""

    plans: list[Plan] = field(default_factory=list)

    def plan(self, fault: Fault, verbs: frozenset[str] = WRITES, **only: str | int) -> Plan:
        """Plan a fault: `plan(CONFLICT, plural="statefulsets", after=2)` is the third write."""
        made = Plan(fault, verbs, **only)  # type: ignore[arg-type]
        self.plans.append(made)
        return made

    def clear(self) -> None:
        self.plans.clear()

    def strike(self, ask: Ask) -> Fault | None:
        return next((plan.fault for plan in self.plans if plan.strikes(ask)), None)
