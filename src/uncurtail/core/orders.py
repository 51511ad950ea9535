"""What the coordinator wants of a site right now, and what a site says of itself.

State, not events: each is a whole value under a key, written again and again. A site that asks
late still gets the answer, and a lost write is repaired by the next.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Desired:
    """What a session should do. A newer epoch ends whatever an older one ordered.

    `capped`: train at the site's capped power. It stands here and not in the order, because it may
    change in the middle of one; the last word heard holds while the state plane is away.
    """

    epoch: int
    session: int
    train: bool
    capped: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the machine of a static site should run: this session, if `up`, and no other.

    Where nothing is written nothing is said: the machine goes on with what it does.
    """

    session: int
    up: bool


@dataclass(frozen=True, slots=True)
class Announcement:
    """The open round: completes a stand-by order whose round it is."""

    epoch: int
    round: int
    base_version: int
    base: str
    close_in_wall_s: float
    not_after_wall: float
    tokens_at_start: int
    sites: int


@dataclass(frozen=True, slots=True)
class Heart:
    """A trainer's own word, written several times a second and at every change.

    `capped`: it keeps to its capped power now. `trouble` is what it could not do, in one line.
    """

    session: int
    stepping: bool
    round: int
    steps: int
    skew_s: float
    capped: bool = False
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Watts:
    """What a site measured of its own power, beside its heartbeat and before there is one.

    `wall_s` is when, by the state plane's clock.
    """

    session: int
    watts: float
    source: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """One inner step, as its trainer saw it. `wall_s`: its clock, corrected by its skew."""

    site: str
    session: int
    round: int
    epoch: int
    step: int
    loss: float
    tokens: int
    wall_s: float
