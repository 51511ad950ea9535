"""A run as a service: started again at will, it is one run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runmaker import Spec, make_run
from tests.test_cli import SRC, TOML
from uncurtail.config import dump, load
from uncurtail.core.events import RunEnded
from uncurtail.runfolder import RunFolder
from uncurtail.running import has_ended


@pytest.fixture
def in_background():
    """What a shell without job control does to whoever it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def waiting(tmp_path, in_background):
    """Start the service in an empty folder, until it says a word; it is gone after the test."""
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    started = []

    def start(word, *options):
        process = subprocess.Popen(
            [sys.executable, "-m", "uncurtail", "run", "tiny.toml", "--service", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        lines: list[str] = []
        assert process.stdout is not None
        while not lines or word not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        return process, "".join(lines)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(tmp_path, reason="budget") -> RunFolder:
    folder = make_run(tmp_path / "runs" / "tiny-20260111-170000", Spec(minutes=60))
    folder.resolved.write_text(dump(load(tmp_path / "tiny.toml")), encoding="utf-8")
    last = folder.read_events()[-1]
    assert isinstance(last, RunEnded)
    lines = folder.events_file.read_text(encoding="utf-8")
    said = lines.replace(f'"reason": "{last.reason}"', f'"reason": "{reason}"')
    folder.events_file.write_text(said, encoding="utf-8")
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_a_run_that_is_over_is_not_begun_again_and_its_service_waits_to_be_ended(
    waiting, tmp_path, number
):
    ended(tmp_path)
    process, said = waiting("has ended")
    assert said == "tiny-20260111-170000 has ended. A new run needs another name.\n"
    time.sleep(0.2)
    assert process.poll() is None, "it stays: whoever starts it again would do so for ever"
    process.send_signal(number)
    assert process.wait(20) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-20260111-170000"]


def test_what_was_changed_meanwhile_is_not_taken_over_in_silence(waiting, tmp_path):
    folder = ended(tmp_path)
    _, said = waiting("has ended", "--set", "seed=2")
    assert "goes on with the settings that it began with" in said
    assert str(Path("runs") / folder.path.name / "resolved.json") in said


@pytest.mark.parametrize(("reason", "over"), [("budget", True), ("user", False)])
def test_a_run_that_a_user_stopped_can_go_on(tmp_path, reason, over):
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    folder = ended(tmp_path, reason)
    assert has_ended(folder) is over
