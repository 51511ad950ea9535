"""The operator's own loop: when it turns, and what it says of what it cannot do."""

import asyncio
from typing import cast

import pytest

from tests.federation.federations import manifest
from uncurtail.adapters.kubernetes_api import Api, KubeError
from uncurtail.operating.live import FINALIZER
from uncurtail.operating.measures import Measures
from uncurtail.operating.mirror import Mirror
from uncurtail.operating.worker import Worker

KEY = ("ml", "fed")


def held(mirror, seen, **spec):
    """A Federation as the server has it."""
    made = manifest(**spec)
    made["metadata"] |= {"resourceVersion": str(seen), "finalizers": [FINALIZER]}
    mirror.take("Federation", made)
    return made


class Edited:
    """An API at which somebody edits the spec just before the operator writes its status."""

    def __init__(self, edited):
        self.edited = edited

    def apply(self, path, thing, manager):
        meta = self.edited["metadata"]
        answer = {**meta, "resourceVersion": f"{meta['resourceVersion']}0"}
        return {**self.edited, "metadata": answer, "status": thing["status"]}

    def call(self, method, path, body, **query):
        return body


class Failing:
    """An API that fails at the first write, and takes events."""

    def __init__(self, error):
        self.error = error
        self.events = []

    def merge(self, path, patch, manager):
        raise self.error

    def call(self, method, path, body, **query):
        self.events.append((body["type"], body["message"]))
        return body


def test_a_stand_by_with_much_that_is_due_does_not_turn_all_the_time():
    turns = []

    def leads():
        turns.append("looked")
        return False

    async def stand_by():
        mirror = Mirror()
        worker = Worker(cast(Api, None), mirror, Measures(mirror), leads)
        worker.agenda.mark(KEY)
        task = asyncio.create_task(worker.run(lambda: True))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert worker.agenda.take() == KEY, "it is there for when this one leads"

    asyncio.run(stand_by())
    assert 1 <= len(turns) <= 10


@pytest.mark.parametrize(
    ("error", "events"),
    [
        pytest.param(
            ZeroDivisionError("by nought"),
            [
                (
                    "Warning",
                    "a bug, of which the operator's log says more: ZeroDivisionError('by nought')",
                )
            ],
            id="bug",
        ),
        pytest.param(
            KubeError("may not patch (403)", code=403),
            [("Warning", "may not patch (403)")],
            id="refused",
        ),
        pytest.param(KubeError("overrun (429)", code=429), [], id="soon-over"),
    ],
)
def test_what_fails_is_told_to_the_federation_which_rests(error, events):
    api = Failing(error)

    async def work():
        mirror = Mirror()
        held(mirror, 1)["metadata"]["finalizers"].clear()
        worker = Worker(cast(Api, api), mirror, Measures(mirror), lambda: True)
        worker.agenda.mark(KEY)
        worker.work(worker.agenda.take() or KEY)
        assert worker.agenda.take() is None
        assert worker.agenda.wait_s(60.0) > 0.5

    asyncio.run(work())
    assert api.events == events


def test_a_spec_that_changes_while_the_status_is_written_does_not_wait_for_the_next_look():
    async def work():
        mirror = Mirror()
        held(mirror, 1, version="1.36")  # has no flags: nothing to do but to say so
        edited = held(Mirror(), 2)
        edited["metadata"]["generation"] = 2
        worker = Worker(cast(Api, Edited(edited)), mirror, Measures(mirror), lambda: True)
        worker.agenda.mark(KEY)
        worker.work(worker.agenda.take() or KEY)
        worker.federation_seen("MODIFIED", edited)  # late, and no news
        assert worker.agenda.take() == KEY

    asyncio.run(work())
