import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.runmaker import Spec, make_run
from uncurtail import tracking, wiring
from uncurtail.adapters import children
from uncurtail.config import TrackingSection
from uncurtail.core.events import Evaluated, RoundCommitted, UpdateRejected, WindowOpened
from uncurtail.core.ledger import Ledger
from uncurtail.errors import UserError
from uncurtail.running import run_experiment

SITES = {"solar", "duck", "windy"}


@dataclass
class ListTracker:
    """Keeps rows; raises when it has taken `fails_after` of them."""

    fails_after: int | None = None
    rows: list[tuple[dict[str, float], dict[str, float], float]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def log(self, number, values, axes, wall_s):
        if len(self.rows) == self.fails_after:
            raise ConnectionError("no route to the tracker")
        self.numbers.append(number)
        self.rows.append((dict(values), dict(axes), wall_s))

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("runs") / "demo-1", Spec(lost=frozenset({(2, "solar")}))
    )


def follower_of(folder, cursor):
    return tracking.Follower(folder, wiring.read_config(folder), cursor)


def drain(follower, tracker):
    while follower.poll(tracker):
        pass
    return tracker.rows


def all_rows(folder, cursor):
    return drain(follower_of(folder, cursor), ListTracker())


def named(rows, name):
    return [values[name] for values, _, _ in rows if name in values]


def test_every_step_of_every_site_is_a_row(finished, tmp_path):
    rows = all_rows(finished, tmp_path / "cursor")
    steps = [report for _, report in finished.read_steps()]
    for site in SITES:
        own = [step for step in steps if step.site == site]
        assert named(rows, f"{site}/loss") == [step.loss for step in own]
        assert named(rows, f"{site}/steps") == list(range(1, len(own) + 1))
        paces = named(rows, f"{site}/tokens_per_s")
        assert 0 < len(paces) < len(own), "the first step of a round has no pace"
    # a step a minute, at a clock 300 times too fast; duck takes two minutes
    assert named(rows, "windy/tokens_per_s")[0] == pytest.approx(4096 / 0.2, rel=0.02)
    assert named(rows, "duck/tokens_per_s")[0] == pytest.approx(4096 / 0.4, rel=0.02)


def test_rounds_carry_the_ledger_of_their_commit(finished, tmp_path):
    rows = all_rows(finished, tmp_path / "cursor")
    events, commits = finished.read_events(), finished.read_commits()
    merged = [e for e in events if isinstance(e, RoundCommitted)]
    assert named(rows, "run/version") == [e.version for e in merged]
    assert named(rows, "run/tokens") == [e.tokens for e in merged]
    assert named(rows, "run/sites") == [len(e.sites) for e in merged]
    total = Ledger.from_json(commits[-1].ledger, 100.0).total()
    assert named(rows, "run/emissions_kg")[-1] == pytest.approx(total.emissions_g / 1000)
    assert named(rows, "run/energy_kwh")[-1] == pytest.approx(total.energy_j / 3.6e6)
    assert max(named(rows, "run/round_s")) == pytest.approx(47 * 60)
    assert max(named(rows, "run/round_wall_s")) == pytest.approx(47 * 60 / 300, abs=0.01)
    assert named(rows, "run/val_loss") == [e.val_loss for e in events if isinstance(e, Evaluated)]
    at = [axes["tokens"] for values, axes, _ in rows if "run/val_loss" in values]
    assert at == [e.tokens for e in events if isinstance(e, Evaluated)]


def test_events_are_counted_by_site(finished, tmp_path):
    rows = all_rows(finished, tmp_path / "cursor")
    opened = Counter(e.site for e in finished.read_events() if isinstance(e, WindowOpened))
    for site in SITES:
        assert named(rows, f"{site}/windows_opened") == list(range(1, opened[site] + 1))
    assert any(isinstance(e, UpdateRejected) for e in finished.read_events())
    assert named(rows, "solar/updates_rejected") == [1]


def test_the_axes_are_global_tokens_and_hours(finished, tmp_path):
    rows = all_rows(finished, tmp_path / "cursor")
    last_merge = [axes for values, axes, _ in rows if "run/version" in values][-1]
    assert last_merge["tokens"] == finished.read_commits()[-1].tokens
    for _, axes, _ in rows:
        assert axes["wall_h"] * 300 == pytest.approx(axes["simulated_h"], abs=0.001)
    assert [axes["wall_h"] for _, axes, _ in rows] == sorted(axes["wall_h"] for _, axes, _ in rows)
    # the sites of a round advance one token axis together
    alone = [axes["tokens"] for values, axes, _ in rows if "solar/loss" in values][:3]
    assert alone == [4096, 2 * 4096, 3 * 4096]


def test_a_restart_at_any_point_logs_nothing_twice(finished, tmp_path, monkeypatch):
    whole = all_rows(finished, tmp_path / "one")
    monkeypatch.setattr(tracking, "PIECE_BYTES", 2000)
    tracker = ListTracker()
    while follower_of(finished, tmp_path / "many").poll(tracker):
        pass
    key = [json.dumps(row, sort_keys=True) for row in tracker.rows]
    assert len(set(key)) == len(key)
    assert sorted(key) == sorted(json.dumps(row, sort_keys=True) for row in whole)
    assert tracker.numbers == list(range(len(whole)))


def test_a_tracker_that_failed_loses_its_batch_and_repeats_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "PIECE_BYTES", 2000)
    failing = ListTracker(fails_after=50)
    follower = follower_of(finished, tmp_path / "cursor")
    with pytest.raises(ConnectionError):
        drain(follower, failing)
    later = all_rows(finished, tmp_path / "cursor")
    keys = [json.dumps(row, sort_keys=True) for row in [*failing.rows, *later]]
    assert len(set(keys)) == len(keys)
    assert later


def test_a_line_is_logged_when_it_is_whole(finished, tmp_path):
    folder = make_run(tmp_path / "demo-2", Spec(minutes=80, ended=False))
    steps = folder.series / "steps.csv"
    text = steps.read_text()
    steps.write_text(text[:-10])
    tracker, follower = ListTracker(), follower_of(folder, tmp_path / "cursor")
    drain(follower, tracker)
    before = len(named(tracker.rows, "solar/loss"))
    steps.write_text(text)
    assert follower.poll(tracker) == 1
    assert len(named(tracker.rows, "solar/loss")) == before + 1 == len(text.splitlines()) - 1


def test_a_folder_of_a_run_that_has_not_begun_is_quiet(tmp_path):
    folder = make_run(tmp_path / "demo-2", Spec(minutes=30, ended=False))
    (folder.series / "steps.csv").unlink()
    folder.events_file.unlink()
    assert follower_of(folder, tmp_path / "cursor").poll(ListTracker()) == 0


def test_tensorboard_reads_back_every_sites_loss(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = make_run(tmp_path / "demo-1")
    tracking.track(folder.path, "tensorboard")
    tracking.track(folder.path, "tensorboard")  # nothing new: nothing twice
    read = EventAccumulator(str(folder.path / "tensorboard"))
    read.Reload()
    for site in SITES:
        losses = [step.loss for _, step in folder.read_steps() if step.site == site]
        scalars = read.Scalars(f"{site}/loss")
        assert [s.value for s in scalars] == pytest.approx(losses)
        assert read.Scalars(f"{site}/tokens_per_s")
    assert read.Scalars("run/emissions_kg")


def test_wandb_offline_holds_every_sites_loss_and_pace(tmp_path):
    pytest.importorskip("wandb")
    folder = make_run(tmp_path / "demo-1")
    steps = folder.series / "steps.csv"
    whole = steps.read_text()
    for text in (whole[: len(whole) // 2], whole):  # twice, as before and after a --resume
        steps.write_text(text)
        command = tracking.command(folder, "wandb")
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
        assert done.stdout == ""
    history = wandb_history(folder.path)
    for site in SITES:
        losses = [step.loss for _, step in folder.read_steps() if step.site == site]
        assert [row[f"{site}/loss"] for row in history if f"{site}/loss" in row] == losses
        assert any(row.get(f"{site}/tokens_per_s", 0) > 0 for row in history)
    assert all({"tokens", "simulated_h", "wall_h"} <= set(row) for row in history)
    assert [row["_step"] for row in history] == list(range(len(history)))


def wandb_history(path):
    """Every row of every W&B run below a run folder, by wandb's own reader."""
    rows = []
    for file in sorted(path.glob("wandb/*run-*/*.wandb")):
        lines = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
            capture_output=True,
            text=True,
            check=True,
            cwd=path,
        ).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        rows += [r["history"]["item"] for r in records if r["type"] == "history"]
    return rows


RAISES = "raise RuntimeError('no tracker today')"
HANGS = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture
def trackers(tmp_path):
    """Makes the supervisor's side of a tracker that runs this code."""
    made: list[tracking.Trackers] = []

    def make(code, **options):
        folder = make_run(tmp_path / f"demo-{len(made)}", Spec(minutes=1))
        said: list[str] = []
        keeper = tracking.Trackers(
            folder,
            ["wandb"],
            {},
            said.append,
            command=lambda folder, kind: [sys.executable, "-S", "-c", code],
            backoff_s=0.1,
            **options,
        )
        made.append(keeper)
        return keeper, said

    yield make
    for keeper in made:
        children.kill_marked(keeper.folder.run_id)
        for child in keeper.procs.values():
            child.wait(5)


def log_says(log):
    return log.read_text().count("RuntimeError: no tracker today") if log.exists() else 0


def keep_alive_for(keeper, wall_s):
    until = time.monotonic() + wall_s
    while time.monotonic() < until:
        keeper.keep_alive()
        time.sleep(0.01)


def test_a_tracker_that_raises_at_once_is_tried_again_a_few_times_and_named_once(trackers):
    keeper, said = trackers(RAISES)
    log = keeper.folder.logs / "track-wandb.log"
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up and log_says(log) <= tracking.RESTARTS:
        keep_alive_for(keeper, 0.1)
    keep_alive_for(keeper, 0.5)
    assert keeper.starts["wandb"] == 1 + tracking.RESTARTS
    assert len(said) == 1
    assert "the run goes on" in said[0]
    assert log.name in said[0]
    assert log_says(log) == 1 + tracking.RESTARTS
    keeper.finish()
    assert keeper.starts["wandb"] == 1 + tracking.RESTARTS, "that was enough"
    assert children.marked(keeper.folder.run_id) == []


def test_a_tracker_that_hangs_is_ended_with_the_run(trackers):
    keeper, said = trackers(HANGS)
    keep_alive_for(keeper, 0.3)
    assert said == []
    (process,) = children.marked(keeper.folder.run_id)
    assert process.role == "track-wandb"
    keeper.finish(within_s=0.2)
    keeper.procs["track-wandb"].wait(5)
    assert len(said) == 1
    assert children.marked(keeper.folder.run_id) == []


def test_a_tracker_that_is_killed_is_started_again(trackers):
    keeper, said = trackers(HANGS)
    keeper.keep_alive()
    first = keeper.procs["track-wandb"]
    os.kill(first.pid, signal.SIGKILL)
    keep_alive_for(keeper, 0.5)
    assert keeper.procs["track-wandb"].pid != first.pid
    assert keeper.procs["track-wandb"].poll() is None
    assert len(said) == 1


def test_a_tracker_killed_just_before_the_end_has_a_last_chance(tmp_path):
    folder = make_run(tmp_path / "demo-1", Spec(minutes=1))
    said: list[str] = []
    procs: dict[str, subprocess.Popen[bytes]] = {}
    seen = folder.path / "seen"
    code = f"""
import pathlib, time
with open({str(seen)!r}, "a") as file: file.write("x")
while not pathlib.Path({str(folder.private / "tracked")!r}).exists(): time.sleep(0.01)
"""
    keeper = tracking.Trackers(
        folder, ["wandb"], procs, said.append, lambda *_: [sys.executable, "-S", "-c", code]
    )
    keeper.keep_alive()
    procs["track-wandb"].kill()
    procs["track-wandb"].wait(5)
    keeper.finish()
    assert procs["track-wandb"].returncode == 0
    assert seen.read_text().endswith("x")


def test_a_tracker_that_cannot_be_started_disturbs_nothing(trackers, monkeypatch):
    keeper, said = trackers(HANGS)

    def refuse(*_args, **_kwargs):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr(children, "spawn", refuse)
    keep_alive_for(keeper, 0.5)
    keeper.finish()
    assert keeper.starts["wandb"] == 1 + tracking.RESTARTS
    assert len(said) == 1


def test_no_tracker_is_wanted_by_default():
    assert tracking.kinds(TrackingSection()) == []
    tracking.check(TrackingSection())
    both = TrackingSection(wandb="offline", tensorboard=True)
    assert tracking.kinds(both) == ["wandb", "tensorboard"]


def test_online_without_a_key_is_said_before_the_run(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_API_KEY_FILE", raising=False)
    with pytest.raises(UserError, match=r"tracking.wandb=offline") as raised:
        run_experiment(
            repository() / "experiments/demo.toml",
            ["tracking.wandb=online"],
            tmp_path / "runs",
            resume=False,
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_a_key_file_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY_FILE"):
        tracking.check(TrackingSection(wandb="online"))
    (tmp_path / "none").write_text("0" * 40 + "\n")
    tracking.check(TrackingSection(wandb="online"))


@pytest.mark.parametrize(
    ("package", "section"),
    [
        ("wandb", TrackingSection(wandb="offline")),
        ("tensorboard", TrackingSection(tensorboard=True)),
    ],
)
def test_a_missing_package_names_its_extra(package, section, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"uncurtail\[{package}\]"):
        tracking.check(section)


def test_no_run_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        tracking.track(tmp_path, "tensorboard")


def repository():
    return Path(__file__).parents[1]
