"""Trackers beside a real run: what they hold afterwards, and that a bad one disturbs nothing."""

import os
import signal

import pytest

from tests.integration.stack import ALWAYS, QUICK
from tests.test_tracking import wandb_history
from uncurtail.core.events import RoundCommitted, RunEnded
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(360)]

BOTH = ("--set", "tracking.wandb=offline", "--set", "tracking.tensorboard=true")
HANGS = "import time\ntime.sleep(600)\n"
RAISES = "raise RuntimeError('no tracker today')\n"


def merged(events):
    return {site for e in events if isinstance(e, RoundCommitted) for site in e.sites}


def assert_undisturbed(run):
    assert isinstance(run.events()[-1], RunEnded)
    assert [c for c in verify(run.folder) if c.passed is False] == []
    assert run.living() == []
    assert merged(run.events()) == {"north", "south"}


def test_both_trackers_hold_every_sites_loss_and_pace_though_one_is_killed(small_run):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = small_run(minutes=100_000, windows=ALWAYS, **QUICK)
    run.start(*BOTH)
    run.until(lambda events: any(isinstance(e, RoundCommitted) for e in events), 150)
    victim = run.pid("track-tensorboard")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    run.until(lambda events: sum(isinstance(e, RoundCommitted) for e in events) > 3, 150)
    run.interrupt()
    assert run.wait(60) == 130, run.output()[-3000:]
    assert_undisturbed(run)

    steps = [step for _, step in run.folder.read_steps()]
    history = wandb_history(run.folder.path)
    read = EventAccumulator(str(run.folder.path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    for site in ("north", "south"):
        losses = [step.loss for step in steps if step.site == site]
        assert losses
        assert sorted(r[f"{site}/loss"] for r in history if f"{site}/loss" in r) == sorted(losses)
        assert sum(row.get(f"{site}/tokens_per_s", 0) > 0 for row in history) > len(losses) / 2
        kept = [round(scalar.value, 4) for scalar in read.Scalars(f"{site}/loss")]
        assert len(kept) <= len(losses), "nothing twice"
        assert len(kept) > len(losses) / 3
    merges = [e for e in run.events() if isinstance(e, RoundCommitted)]
    assert [r["run/version"] for r in history if "run/version" in r] == [m.version for m in merges]
    assert all(row["run/emissions_kg"] > 0 for row in history if "run/version" in row)
    assert "tensorboard tracking failed" in run.output()
    assert "wandb tracking failed" not in run.output()


def test_trackers_that_hang_or_raise_disturb_nothing(small_run, tmp_path, monkeypatch):
    for name, code in (("wandb", HANGS), ("tensorboard", RAISES)):
        package = tmp_path / "fakes" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
    path = [str(tmp_path / "fakes"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    run = small_run(minutes=100_000, windows=ALWAYS, **QUICK)
    run.start(*BOTH)
    run.until(lambda events: merged(events) == {"north", "south"}, 120)
    run.interrupt()
    assert run.wait(60) == 130, run.output()[-3000:]
    assert_undisturbed(run)
    assert run.output().count("tensorboard tracking failed") == 1
    assert "wandb did not finish within" in run.output()
    log = (run.folder.logs / "track-tensorboard.log").read_text()
    assert log.count("RuntimeError: no tracker today") == 4
