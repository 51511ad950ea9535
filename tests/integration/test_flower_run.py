"""A whole run by plain `flwr run`, on a SuperLink and a SuperExec that somebody else started."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.integration.stack import SmallRun, kill
from uncurtail.adapters import children
from uncurtail.adapters.flower_commands import CONNECTION, Flower
from uncurtail.core.events import CoordinatorStarted, RoundCommitted, RunEnded, SitePhase
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@dataclass
class Federation:
    """What a person who lives in Flower's tools has: a SuperLink, a SuperExec, and `flwr`."""

    flower: Flower
    home: Path
    run: SmallRun
    superexec: subprocess.Popen[bytes] = field(init=False)
    started: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flower.write_home()
        with (self.home / "superexec.log").open("ab") as log:
            self.superexec = subprocess.Popen(
                self.flower.superexec(),
                cwd=self.home,
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        return children.environment(self.flower.environment())

    def flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment(), capture_output=True, text=True, check=True
        )
        return done.stdout

    def start(self) -> int:
        said = self.flwr("run", str(self.home / "app"), CONNECTION, "--format", "json")
        self.started.append(int(json.loads(said)["run-id"]))
        return self.started[-1]

    def status(self, flower_run: int) -> str:
        said = self.flwr("list", CONNECTION, "--run-id", str(flower_run), "--format", "json")
        return str(json.loads(said)["runs"][0]["status"])

    def log(self, flower_run: int) -> str:
        return self.flwr("log", str(flower_run), CONNECTION, "--show")

    def until(self, found: Callable[[], object], timeout_s: float = 90.0) -> None:
        give_up = time.monotonic() + timeout_s
        while not found():
            assert time.monotonic() < give_up, self.log(self.started[-1])[-4000:]
            time.sleep(0.2)

    def supervisor(self) -> int:
        return int(json.loads((self.run.folder.private / "supervisor.json").read_text())["pid"])

    def left(self) -> list[int]:
        """What lives of the run: its marked processes, its supervisor, its coordinator."""
        private = self.run.folder.private
        notes = (private / "supervisor.json", private / "coordinator.json")
        alone = [pid for note in notes if (pid := children.introduced(note)) is not None]
        return [*(each.pid for each in self.run.living()), *alone]

    def clean_up(self) -> None:
        for process in psutil.Process(self.superexec.pid).children(recursive=True):
            process.kill()
        os.killpg(self.superexec.pid, signal.SIGKILL)
        self.superexec.wait(10)


@pytest.fixture
def federation(small_run, superlink, tmp_path):
    """A small run as an app, and what starts it; nothing is left of either."""
    run = small_run(minutes=900, windows={"north": [(0, 900)], "south": []}, speed=60.0)
    settings = [
        f"flower.superlink={superlink.address}",
        f"flower.superlink_ca={superlink.certificates / 'ca.crt'}",
    ]
    command = [sys.executable, "-m", "uncurtail", "flower", "app", str(run.home / "small.toml")]
    command += [str(run.home / "app"), *(p for each in settings for p in ("--set", each))]
    subprocess.run(command, check=True)
    made = Federation(superlink, run.home, run)
    yield made
    made.clean_up()


def test_a_run_that_flwr_started_survives_its_serverapp_and_its_supervisor(federation):
    run = federation.run

    def trains(epoch: int) -> bool:
        events = run.events()
        starts = [n for n, e in enumerate(events) if isinstance(e, CoordinatorStarted)]
        if len(starts) < epoch:
            return False
        since = events[starts[epoch - 1] :]
        return any(isinstance(e, SitePhase) and e.phase == "training" for e in since)

    first = federation.start()
    federation.until(lambda: trains(1))
    again = federation.start()
    federation.until(lambda: federation.status(again) == "finished:failed")
    assert f"has a run that flwr started already (process {federation.supervisor()})" in (
        federation.log(again)
    )
    assert federation.status(first) == "running", "the one that was there is not disturbed"

    kill(run.coordinator())
    federation.until(lambda: federation.left() == [], 30)  # sites alone would stay for 60 s
    second = federation.start()
    federation.until(lambda: trains(2))

    kill(federation.supervisor())
    federation.until(lambda: federation.left() == [], 30)  # sites alone would stay for 60 s
    federation.until(lambda: federation.status(second) == "finished:failed")
    assert "the supervisor is gone" in federation.log(second)

    third = federation.start()
    federation.until(lambda: trains(3))
    os.kill(federation.supervisor(), signal.SIGINT)
    federation.until(lambda: federation.status(third) == "finished:completed")
    federation.until(lambda: federation.left() == [])  # it tells Flower of its end before that
    assert isinstance(run.events()[-1], RunEnded)
    assert any(isinstance(event, RoundCommitted) for event in run.events()), "it handed in its work"
    assert [check for check in verify(run.folder) if check.passed is False] == []
    assert not (run.folder.private / "superlink.db").exists(), "the SuperLink is another's"
    said = federation.log(third)
    assert f"Run folder: {run.folder.path}" in said
    assert "coordinator 3 at work" in said
    assert "Stopped. Resume with: the same flwr run" in said


def test_a_run_that_lacks_the_secret_of_its_superlink_says_so(small_run, superlink):
    run = small_run(minutes=900, windows={"north": [(0, 900)], "south": []}, speed=60.0)
    authority = superlink.certificates / "ca.crt"
    settings = [f"flower.superlink={superlink.address}", f"flower.superlink_ca={authority}"]
    run.start(*(part for each in settings for part in ("--set", each)))
    give_up = time.monotonic() + 60.0
    while "has a secret for it, set UNCURTAIL_SUPEREXEC_SECRET" not in run.output():
        assert time.monotonic() < give_up, run.output()
        time.sleep(0.2)
    run.interrupt()
    assert run.wait(60) == 130
    assert "Resume with" in run.output()
