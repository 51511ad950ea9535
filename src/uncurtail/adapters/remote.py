"""Sites on machines elsewhere: what every such provisioner shares, over a small `Cloud`.

The loop's calls only note what is wanted. One thread looks at what exists, and makes the moves of
`core.nodes`: no tick ever waits for a cloud. What exists is read from the cloud, not from memory,
so a new coordinator goes on with the machines of the old one.
"""

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Event, Lock, Thread
from typing import Protocol, TypeVar

from uncurtail.adapters import clock
from uncurtail.core import nodes
from uncurtail.core.nodes import (
    Create,
    Delete,
    Move,
    Node,
    NodeState,
    Outcome,
    RemoteSection,
    Session,
    Tried,
    Wish,
)

log = logging.getLogger("uncurtail.fleet")

LONGEST_PAUSE_S = 3600.0

T = TypeVar("T")
Environment = Callable[[str, int], Mapping[str, str]]


class CloudError(Exception):
    """A call that failed: one line with the reason, without credentials.

    `unsure`: it may have happened all the same. `retry_after_s`: how long the cloud asked to be
    left alone.
    """

    def __init__(
        self, message: str, *, unsure: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.unsure = unsure
        self.retry_after_s = retry_after_s


class Cloud(Protocol):
    """A place with machines. Every call ends by itself, and raises nothing but CloudError."""

    name: str

    def look(self) -> Sequence[Node]:
        """Every node of this run that exists, whoever made it."""
        ...

    def create(self, site: str, session: int, environment: Mapping[str, str]) -> None:
        """Make the session's node, or go on making it; what it runs gets this environment."""
        ...

    def delete(self, node: Node) -> None:
        """Begin to delete a node; one that is gone already is what was wanted."""
        ...


class RemoteProvisioner:
    """The provisioner of the sites of one cloud."""

    def __init__(  # noqa: PLR0913  (what it stands on, the last by their names)
        self,
        cloud: Cloud,
        sites: Collection[str],
        believed: Collection[Session],
        settings: RemoteSection,
        environment: Environment,
        *,
        seed: int = 0,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:
        """`believed` are the sessions that an earlier coordinator left, by the run folder.

        Nothing is asked before `start`, or `step`.
        """
        self._cloud = cloud
        self._sites = frozenset(sites)
        self._settings = settings
        self._environment = environment
        self._random = random.Random(seed)
        self._now = monotonic
        self._lock = Lock()
        self._woken = Event()
        self._closed = False
        self._wishes: dict[Session, Wish] = {}
        # They count as existing until the cloud was asked, and for as long as a last call of the
        # earlier coordinator may still come true.
        self._tried = {key: Tried(unsure_until=float("inf")) for key in believed}
        self._observed: Sequence[Node] = ()
        self._looked_at = float("-inf")  # by a look that succeeded
        self._failures = 0
        self._quiet_until = float("-inf")
        self._asking_since: float | None = None
        self._making: Session | None = None  # a call for it is under way
        self._troubles: dict[Session | None, str] = {}

    # -- the loop's side: quick --

    def provision(self, site: str, session: int) -> None:
        """Note that this session is wanted."""
        self._wish((site, session), Wish.UP)

    def release(self, site: str, session: int) -> None:
        """Note that this session has to go, for good."""
        self._wish((site, session), Wish.GONE)

    def alive(self) -> dict[str, frozenset[int]]:
        """The sessions that exist by the last look, are being made, or may still turn up."""
        with self._lock:
            found = self._existing()
        by_site: dict[str, set[int]] = {}
        for site, session in found:
            by_site.setdefault(site, set()).add(session)
        return {site: frozenset(sessions) for site, sessions in by_site.items()}

    @property
    def trouble(self) -> str | None:
        """What fails at the cloud now, in one line; None while nothing does."""
        with self._lock:
            lines = list(self._troubles.values())
            lines += [self._said_of(node) for node in self._observed if node.why]
            since = self._asking_since
        patience_s = 2 * self._settings.call_timeout_wall_s
        if since is not None and (hung_s := self._now() - since) > patience_s:
            lines.insert(0, f"{self._cloud.name} has not finished an answer for {hung_s:.0f} s")
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        return f"{lines[0]}{more}" if lines else None

    def _wish(self, key: Session, wish: Wish) -> None:
        with self._lock:
            if self._wishes.get(key) in (wish, Wish.GONE):
                return
            self._wishes[key] = wish
        self._woken.set()

    def _existing(self) -> frozenset[Session]:
        found = nodes.existing(self._observed, self._wishes, self._tried, self._looked_at)
        return found if self._making is None else found | {self._making}

    def _said_of(self, node: Node) -> str:
        return f"{self._cloud.name} says of the node of {node.site}: {node.why}"

    # -- the thread's side --

    def start(self) -> None:
        """Begin to work. The thread must not keep a process alive that wants to end."""
        Thread(target=self._run, name=f"fleet {self._cloud.name}", daemon=True).start()

    def close(self) -> None:
        """Work no more; a call that is under way ends by its timeout."""
        self._closed = True
        self._woken.set()

    def _run(self) -> None:
        while not self._closed:
            self._woken.clear()
            self._woken.wait(self.step())

    def step(self) -> float:
        """Look, and make what moves this suggests; seconds until the next look. Never raises."""
        if self._quiet_s() > 0.0:
            return self._quiet_s()
        now = self._now()  # what exists is seen after this, not after the answer
        try:
            observed = self._ask(self._cloud.look)
        except CloudError as error:
            self._look_failed(error)
            return self._quiet_s()
        self._take(observed, now)
        with self._lock:
            wishes, tried = dict(self._wishes), dict(self._tried)
        for move in nodes.decide(observed, wishes, tried, self._now()):
            if self._closed or self._quiet_s() > 0.0:
                break
            self._make(move)
        return max(self._settings.poll_wall_s, self._quiet_s())

    def _quiet_s(self) -> float:
        return max(0.0, self._quiet_until - self._now())

    def _ask(self, call: Callable[[], T]) -> T:
        """Call the cloud.

        Raises:
            CloudError: It failed, in whatever way.
        """
        self._asking_since = self._now()
        try:
            return call()
        except CloudError as error:
            asked_s = min(error.retry_after_s or 0.0, LONGEST_PAUSE_S)
            self._quiet_until = max(self._quiet_until, self._now() + asked_s)
            raise
        # A bug in an adapter must show up as trouble, not as a dead thread and machines left on.
        except Exception as error:
            log.exception("%s failed", self._cloud.name)
            said = f"{self._cloud.name}: {type(error).__name__}: {error}"
            raise CloudError(said, unsure=True) from error
        finally:
            self._asking_since = None

    def _look_failed(self, error: CloudError) -> None:
        with self._lock:
            self._failures += 1
            self._troubles[None] = str(error)
        pause_s = nodes.retry_s(self._failures, self._settings, self._random.random())
        self._quiet_until = max(self._quiet_until, self._now() + pause_s)

    def _take(self, observed: Sequence[Node], now: float) -> None:
        """Keep what was seen, and let go what belongs to no site of this run."""
        with self._lock:
            self._failures = 0
            if self._looked_at == float("-inf"):
                settled = now + self._settings.settle_wall_s
                self._tried = {key: Tried(unsure_until=settled) for key in self._tried}
            self._looked_at = now
            self._tried = nodes.noticed(observed, self._tried, now)
            self._observed = observed
            coming = {n.key for n in observed if n.state in (NodeState.STARTING, NodeState.READY)}
            mended = {key for key in coming if self._wishes.get(key) is not Wish.GONE}
            ill = self._existing() - mended
            self._troubles = {k: line for k, line in self._troubles.items() if k in ill}
        for node in observed:
            if node.site not in self._sites:
                self._wish(node.key, Wish.GONE)

    def _make(self, move: Move) -> None:
        key = (move.site, move.session) if isinstance(move, Create) else move.node.key
        with self._lock:
            if isinstance(move, Create) and self._wishes.get(key) is not Wish.UP:
                return  # the loop thought better of it since the look
            self._making = key
        log.info("%s: %s", self._cloud.name, move)
        outcome, line = self._call(move)
        with self._lock:
            self._making = None
            known = self._tried.get(key, Tried())
            self._tried[key] = nodes.after(
                known, move, outcome, self._settings, self._now(), self._random.random()
            )
            self._troubles.pop(key, None)
            if line is not None:
                self._troubles[key] = line

    def _call(self, move: Move) -> tuple[Outcome, str | None]:
        """How the call ended, and what it said if it failed."""
        try:
            match move:
                case Create(site, session):
                    self._ask(
                        lambda: self._cloud.create(site, session, self._environment(site, session))
                    )
                case Delete(node):
                    self._ask(lambda: self._cloud.delete(node))
        except CloudError as error:
            return Outcome.UNSURE if error.unsure else Outcome.REFUSED, str(error)
        return Outcome.DONE, None
