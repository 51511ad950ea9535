"""kill -9 of every process of a run, one at a time: it goes on by itself, and verify passes."""

import time

import psutil
import pytest

from tests.integration.stack import ALWAYS, QUICK, SmallRun, kill
from uncurtail.core.events import (
    CoordinatorStarted,
    Event,
    RoundCommitted,
    RunEnded,
    SitePhase,
    SiteReleased,
    StopRequested,
)
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


def commits(events: list[Event]) -> int:
    return sum(isinstance(event, RoundCommitted) for event in events)


def together(events: list[Event]) -> list[list[str]]:
    return [event.sites for event in events if isinstance(event, RoundCommitted)]


def training(run: SmallRun, site: str) -> bool:
    phases = [e.phase for e in run.events() if isinstance(e, SitePhase) and e.site == site]
    return bool(phases) and phases[-1] == "training"


def goes_on(run: SmallRun, more: int = 1) -> None:
    """Wait for further commits after what just happened."""
    before = commits(run.events())
    run.until(lambda events: commits(events) >= before + more, timeout_s=180)


def check(run: SmallRun) -> None:
    broken = [c for c in verify(run.folder) if c.passed is False]
    assert broken == []
    assert run.living() == []


def test_whatever_is_killed_the_run_goes_on_by_itself(small_run):
    run = small_run(minutes=100_000, windows=ALWAYS, **QUICK)
    run.start()
    run.until(lambda events: commits(events) >= 2, timeout_s=180)

    kill(run.pid("trainer", "north"))
    goes_on(run)
    kill(run.pid("supernode", "south"))
    goes_on(run)
    leader = run.pid("leader", "north")
    assert leader is not None
    for process in [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]:
        process.kill()
    goes_on(run)
    lost = [(e.site, e.cause) for e in run.events() if isinstance(e, SiteReleased)]
    assert lost == [("north", "lost"), ("south", "lost"), ("north", "lost")]

    kill(run.pid("redis"))
    goes_on(run)
    kill(run.pid("superlink"))
    goes_on(run, more=2)  # what was out when it died may still arrive
    kill(run.coordinator())
    goes_on(run, more=2)
    assert [e.epoch for e in run.events() if isinstance(e, CoordinatorStarted)] == [1, 2]
    # A SuperNode that was just fetching a message of the Flower run that ended is stuck for two
    # hours: its site is started anew.
    seen = len(run.events())
    run.until(lambda events: ["north", "south"] in together(events[seen:]), timeout_s=180)

    run.interrupt()
    assert run.wait(30) == 130
    check(run)
    assert run.events()[-1] == [e for e in run.events() if isinstance(e, RunEnded)][-1]


def test_a_killed_run_resumes_with_one_command_or_its_sites_end_by_themselves(small_run):
    run = small_run(minutes=100_000, windows=ALWAYS, **QUICK)
    text = (run.home / "small.toml").read_text()
    (run.home / "small.toml").write_text(text + "\n[fleet]\norphan_after_wall_s = 5\n")
    run.start()
    run.until(lambda events: commits(events) >= 1, timeout_s=180)
    assert run.process is not None
    run.process.kill()
    run.process.wait(10)
    before = commits(run.events())

    run.start("--resume")  # at once: it ends what is left
    run.until(lambda events: commits(events) >= before + 1, timeout_s=180)
    run.process.kill()
    run.process.wait(10)
    give_up = time.monotonic() + 60
    while run.living() and time.monotonic() < give_up:
        time.sleep(0.5)
    assert run.living() == []

    run.start("--resume")
    goes_on(run)
    drain_by_ctrl_c(run)


def drain_by_ctrl_c(run: SmallRun) -> None:
    """It takes less than 15 s, keeps the work, leaves nothing, and says how to go on."""
    run.until(lambda _events: training(run, "north") and training(run, "south"), timeout_s=120)
    before = commits(run.events())
    asked = time.monotonic()
    run.interrupt()
    run.until(lambda events: isinstance(events[-1], RunEnded), timeout_s=15)
    assert time.monotonic() - asked < 15
    assert run.wait(30) == 130
    check(run)
    events = run.events()
    assert [e.reason for e in events if isinstance(e, StopRequested)] == ["user"]
    assert commits(events) == before + 1, "what the sites had done is merged, not lost"
    assert "--resume" in run.output().splitlines()[-1]
