"""The operator's own loop: whatever Federation is due is looked at, planned and carried out.

Nothing is remembered that matters: an operator that dies, or one that takes over, plans from what
exists. A Federation that fails rests and is tried again; the others go on.
"""

import asyncio
import logging
from collections.abc import Callable

from uncurtail.adapters import clock
from uncurtail.adapters.kubernetes_api import Api, KubeError
from uncurtail.operating.agenda import Agenda
from uncurtail.operating.kinds import FEDERATION, Key
from uncurtail.operating.live import FINALIZER, LiveCluster
from uncurtail.operating.measures import Measures
from uncurtail.operating.mirror import Mirror
from uncurtail.operator.actions import Event
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import is_ending
from uncurtail.operator.reconcile import Outcome, reconcile

log = logging.getLogger("uncurtail.operator")

AT_ONCE = 8  # Federations worked on side by side: what each waits for is the API server
# After a change the plan is made again, to see that it settled; what watches tell until then is
# taken in one go.
SETTLE_S = 0.2
IDLE_S = 1.0
STAND_BY_S = 0.1  # between looks whether we lead, and have listed everything


class Worker:
    """Works while `leads` says so."""

    def __init__(
        self, api: Api, mirror: Mirror, measures: Measures, leads: Callable[[], bool]
    ) -> None:
        self._api = api
        self._mirror = mirror
        self._measures = measures
        self._leads = leads
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.agenda = Agenda(self._wake, clock.monotonic)

    def federation_seen(self, kind: str | None, thing: Manifest) -> None:
        """The framework tells of a Federation: `kind` DELETED, or anything else."""
        name, key = FEDERATION.name, (thing["metadata"]["namespace"], thing["metadata"]["name"])
        if kind == "DELETED":
            self._mirror.drop(name, thing)
            return
        before = self._mirror.federation(key)
        if self._mirror.take(name, thing) is not None:
            self.agenda.mark(key, fresh=_generation(thing) != _generation(before))

    async def run(self, synced: Callable[[], bool]) -> None:
        """Work for ever, once `synced`: a plan over half a view would make things twice."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._woken.clear()
                ready = self._leads() and synced()
                if ready:
                    while len(running) < AT_ONCE and (key := self.agenda.take()) is not None:
                        task = asyncio.create_task(asyncio.to_thread(self.work, key))
                        running.add(task)
                        task.add_done_callback(running.discard)
                pause_s = IDLE_S if len(running) >= AT_ONCE else self.agenda.wait_s(IDLE_S)
                # Whoever stands by has much that is due, and nothing to do.
                least_s = 0.01 if ready else STAND_BY_S
                try:
                    async with asyncio.timeout(max(pause_s, least_s)):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            # A thread cannot be stopped: what it has begun is finished.
            await asyncio.gather(*running, return_exceptions=True)

    def work(self, key: Key) -> None:
        """Reconcile one Federation. What fails is told, and never stops the others."""
        began = clock.monotonic()
        cluster = LiveCluster(self._api, self._mirror, key)
        again_in_s: float | None = None
        told: str | None = None  # to the Federation's users, who do not read our log
        try:
            outcome = self._reconcile(cluster, key)
        except KubeError as error:
            log.warning("%s/%s: %s", *key, error)
            failed, again_in_s = True, error.retry_after_s
            if error.code == 404:
                self._mirror.forget(FEDERATION.name, *key)
                failed = False
            elif not error.transient:
                told = str(error)
        # A bug must stop neither the operator nor its other Federations.
        except Exception as error:
            log.exception("%s/%s cannot be reconciled", *key)
            failed, told = True, f"a bug, of which the operator's log says more: {error!r}"
        else:
            failed = outcome is not None and outcome.failure is not None
            if outcome is not None and outcome.failure is not None:
                log.warning("%s/%s: %s", *key, outcome.failure)
                again_in_s = cluster.retry_after_s
            elif outcome is not None and not outcome.plan.finished:
                acted, wake_s = bool(outcome.plan.actions), outcome.plan.wake_s
                again_in_s = min(SETTLE_S, wake_s) if acted else wake_s
        self.agenda.done(key, again_in_s, failed=failed)
        self._measures.reconciled("failed" if failed else "ok", clock.monotonic() - began)
        if told is not None:
            cluster.report({}, [Event("Warning", "NotReconciled", told)])

    def _reconcile(self, cluster: LiveCluster, key: Key) -> Outcome | None:
        federation = self._mirror.federation(key)
        if federation is None:
            return None
        if is_ending(federation):
            if FINALIZER not in (federation["metadata"].get("finalizers") or []):
                return None
        else:
            federation = cluster.claim(federation)
        outcome = reconcile(cluster, federation, clock.wall())
        after = self._mirror.federation(key)
        if after is not None and _generation(after) != _generation(federation):
            # The answer to our status had a spec that was not planned for; its event, which comes
            # later, is no news.
            self.agenda.mark(key, fresh=True)
        if outcome.plan.finished and outcome.failure is None:
            cluster.let_go(federation)
        return outcome

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)


def _generation(federation: Manifest | None) -> object:
    return None if federation is None else federation["metadata"].get("generation")
