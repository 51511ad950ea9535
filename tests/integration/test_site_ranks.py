"""A site of two ranks on real parts: it trains, a rank is killed, its window closes."""

import os
import signal

import pytest

from tests.integration.stack import ALWAYS, QUICK
from uncurtail.core.events import RoundCommitted, SiteReleased
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.timeout(360)]


def test_a_site_of_two_ranks_survives_a_killed_rank_and_skips_nothing(small_run):
    run = small_run(minutes=100_000, windows=ALWAYS, **QUICK)
    run.start("--set", "sites.north.ranks=2", "--set", "sites.north.threads=2")
    run.until(lambda events: merged_since(events, 0) == {"north", "south"}, 180)
    killed = run.pid("rank-1", "north")
    assert killed is not None
    first = run.pid("trainer", "north")
    os.kill(killed, signal.SIGKILL)
    run.until(lambda events: "lost" in causes(events), 60)
    assert run.pid("trainer", "north") != first, "one rank dies, all of the session dies"
    seen = len(run.events())
    run.until(lambda events: "north" in merged_since(events, seen), 180)
    run.interrupt()
    assert run.wait(60) == 130, run.output()[-3000:]

    assert [c for c in verify(run.folder) if c.passed is False] == []
    assert causes(run.events()) == ["lost", "drained"]
    assert run.living() == []


def merged_since(events, first):
    """The sites of all merges from event number `first` on."""
    return {s for e in events[first:] if isinstance(e, RoundCommitted) for s in e.sites}


def causes(events):
    """How the sessions of the site of two ranks ended."""
    return [e.cause for e in events if isinstance(e, SiteReleased) and e.site == "north"]
