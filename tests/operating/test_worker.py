"""The operator's own loop: when it turns, and what it says of what it cannot do."""

import asyncio
from typing import cast

from uncurtail.adapters.kubernetes_api import Api
from uncurtail.operating.measures import Measures
from uncurtail.operating.mirror import Mirror
from uncurtail.operating.worker import Worker

KEY = ("ml", "fed")


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
