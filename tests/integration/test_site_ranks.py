"""A site of two ranks on real parts: it trains, a rank is killed, its window closes."""

import os
import signal
import time

import pytest

from uncurtail.core.events import RoundCommitted, SiteReleased
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.timeout(360)]


def test_a_site_of_two_ranks_survives_a_killed_rank_and_skips_nothing(small_run):
    run = small_run(minutes=80, speed=50.0, windows={"north": [(0, 75)], "south": [(0, 50)]})
    run.start("--set", "sites.north.ranks=2", "--set", "sites.north.threads=2")
    run.until(lambda events: any(isinstance(e, RoundCommitted) for e in events), 120)
    killed = run.pid("rank-1", "north")
    assert killed is not None
    first = run.pid("trainer", "north")
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 20
    while run.pid("trainer", "north") == first and time.monotonic() < until:
        time.sleep(0.1)
    assert run.pid("trainer", "north") != first, "one rank dies, all of the session dies"
    assert run.wait(280) == 0, run.output()[-3000:]

    events = run.events()
    assert [c for c in verify(run.folder) if c.passed is not True] == []
    causes = [e.cause for e in events if isinstance(e, SiteReleased) and e.site == "north"]
    assert "lost" in causes
    assert causes[-1] == "drained"
    after = events[
        max(i for i, e in enumerate(events) if isinstance(e, SiteReleased) and e.cause == "lost") :
    ]
    assert any("north" in e.sites for e in after if isinstance(e, RoundCommitted))
    assert run.living() == []
