"""A run folder is read back as it was written, without the line that a dying writer tore."""

import os
import stat
from pathlib import Path

import pytest

from uncurtail.core.commit import Commit, key
from uncurtail.core.events import RoundOpened, RoundSkipped
from uncurtail.core.leases import FreeSteps
from uncurtail.core.ledger import Segment
from uncurtail.core.microgrid import Flow
from uncurtail.core.orders import StepReport
from uncurtail.core.signals import Kind, Reading, Signal
from uncurtail.runfolder import Journal, PowerRow, RunFolder, newest, write_atomic

T = 1_784_872_800.0
EVENTS = [
    RoundOpened(t=T, wall_s=1.0, round=1, base_version=0, deadline=T + 60),
    RoundSkipped(t=T + 60, wall_s=2.0, round=1),
]
READINGS = [
    Reading("solar", T, 12.5),
    Reading("duck", T + 300, None),
    Reading("duck", T + 600, 0.0),
    Reading("duck", T + 900, 7.5, T + 600, Signal(Kind.AVERAGE, source="electricitymaps")),
]
FLOW = Flow(100.0, 150.0, 228.0, solar_charge_w=0.5, grid_charge_w=10.0, soc=0.875)
POWER = [
    [
        (Segment("solar", "training", T, T + 300, 2024.0, 12.5), 2024.25),
        (Segment("duck", "idle", T, T + 300, 468.0, None), 468.0),
    ],
    [(Segment("solar", "idle", T + 300, T + 300.125, 468.0, 0.0), 0.0)],
    [(Segment("duck", "idle", T + 300, T + 600, 468.0, 9.0, FLOW), 228.0)],
]
STEPS = [
    (T + 1.5, StepReport("solar", 1, 1, 0, 7, 3.25, 2048, 100.125)),
    (T + 2.5, StepReport("solar", 1, 1, 0, 8, 3.125, 2048, 101.125)),
]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "demo-20260724-060000")


@pytest.fixture
def written(folder):
    journal = Journal(folder)
    write_everything(journal)
    journal.close()
    return folder


def write_everything(journal):
    for event in EVENTS:
        journal.event(event)
    for reading in READINGS:
        journal.reading(reading)
    for cut in POWER:
        journal.power(cut)
    journal.steps(STEPS)


def everything(folder):
    return (
        folder.read_events(),
        folder.read_readings(),
        folder.read_power(),
        folder.read_steps(),
    )


EVERYTHING = (
    EVENTS,
    READINGS,
    [PowerRow(segment, drawn) for cut in POWER for segment, drawn in cut],
    STEPS,
)
FILES = ["events.jsonl", "series/readings.csv", "series/power.csv", "series/steps.csv"]


def test_everything_is_read_as_it_was_written(written):
    assert everything(written) == EVERYTHING


def test_a_run_that_wrote_nothing_yet_reads_as_nothing(folder):
    assert everything(folder) == ([], [], [], [])
    assert folder.read_commits() == []
    assert folder.read_consumed("solar") == []
    assert folder.read_traces(T) == {}


def test_a_new_coordinator_appends_to_what_the_old_one_wrote(written):
    journal = Journal(written)
    write_everything(journal)
    journal.close()
    assert everything(written) == tuple(part * 2 for part in EVERYTHING)


@pytest.mark.parametrize("name", FILES)
def test_each_line_is_there_for_a_reader_as_soon_as_it_is_written(folder, name):
    journal = Journal(folder)
    write_everything(journal)
    text = (folder.path / name).read_text()
    assert text.endswith("\n")
    assert everything(folder) == EVERYTHING
    journal.close()


@pytest.mark.parametrize("torn_at", [1, 5, -1], ids=["one-byte", "some-bytes", "all-but-newline"])
@pytest.mark.parametrize("name", FILES)
def test_a_torn_last_line_is_not_read_and_dropped_on_reopening(written, name, torn_at):
    path = written.path / name
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole + last[:torn_at])
    assert everything(written) == EVERYTHING, "a reader drops it"
    Journal(written).close()
    assert path.read_bytes() == whole, "a writer removes it"


@pytest.mark.parametrize("name", FILES)
def test_a_line_torn_in_the_middle_of_its_write_can_be_any_line(written, name):
    path = written.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    Journal(written).close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize("name", FILES[1:])
def test_a_torn_header_is_written_anew(written, name):
    path = written.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:5])
    Journal(written).close()
    assert path.read_bytes() == whole.splitlines(keepends=True)[0]


def test_what_belongs_together_is_one_write(folder, monkeypatch):
    journal = Journal(folder)
    wrote: list[str] = []
    monkeypatch.setattr(journal._events, "write", wrote.append)
    journal.events(EVENTS)
    assert len(wrote) == 1
    journal.close()


def test_the_offset_counts_the_bytes_of_the_event_log_across_a_restart(folder):
    journal = Journal(folder)
    assert journal.offset() == 0
    journal.event(EVENTS[0])
    first = journal.offset()
    assert first == folder.events_file.stat().st_size
    journal.close()
    journal = Journal(folder)
    assert journal.offset() == first
    journal.event(EVENTS[1])
    assert journal.offset() == folder.events_file.stat().st_size
    journal.close()


def test_sync_reaches_the_disk_for_every_file(folder, monkeypatch):
    journal = Journal(folder)
    write_everything(journal)
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    journal.sync()
    assert {folder.path / name for name in FILES} <= set(synced)
    journal.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_private_is_for_this_user_only_whatever_the_umask(folder, umask):
    before = os.umask(umask)
    try:
        folder.create()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.private.stat().st_mode) == 0o700


def test_private_is_closed_again_on_reopening(folder):
    folder.create()
    folder.private.chmod(0o755)
    folder.create()
    assert stat.S_IMODE(folder.private.stat().st_mode) == 0o700


def test_the_run_is_named_as_its_folder_however_it_is_reached(tmp_path, monkeypatch):
    (tmp_path / "demo-1").mkdir()
    monkeypatch.chdir(tmp_path / "demo-1")
    assert RunFolder(tmp_path / "demo-1" / ".").run_id == "demo-1"
    assert RunFolder(tmp_path.joinpath("demo-1", "..", "demo-1")).run_id == "demo-1"


def test_readings_become_stepwise_traces_without_repeats_or_going_back(folder):
    journal = Journal(folder)
    told = [(0, 1.0), (300, None), (300, 9.0), (200, 9.0), (600, 3.0)]
    for seconds, value in told:
        journal.reading(Reading("solar", T + seconds, value))
    journal.close()
    trace = folder.read_traces(T + 900)["solar"]
    assert trace.times.tolist() == [T, T + 300, T + 600]
    assert [trace.at(T + s) for s in (0, 300, 600, 899, 900)] == [1.0, None, 3.0, 3.0, None]


def commit(version) -> Commit:
    return Commit(
        run="demo-1",
        version=version,
        epoch=1,
        round=version,
        parent_sha256=None,
        t=T,
        wall_s=1.0,
        model="objects/m",
        outer=None,
        tokens=0,
        free=FreeSteps(10),
    )


def test_commits_are_read_oldest_first_and_nothing_else_in_their_folder(folder):
    folder.create()
    for version in (10, 2, 0):
        (folder.path / key(version)).write_bytes(commit(version).encode())
    (folder.path / "commits" / ".00000003.json.77").write_text("half a wri")
    assert [c.version for c in folder.read_commits()] == [0, 2, 10]
    assert folder.commit_bytes(2) == commit(2).encode()


def test_a_damaged_commit_is_an_error(folder):
    folder.create()
    (folder.path / key(0)).write_bytes(commit(0).encode()[:-9])
    with pytest.raises(ValueError, match=r"."):
        folder.read_commits()


def test_what_a_site_consumed_is_read_without_its_torn_last_line(folder):
    home = folder.site("solar")
    home.mkdir(parents=True)
    (home / "consumed.jsonl").write_text('{"steps": 1}\n{"steps": 2}\n{"ste')
    assert folder.read_consumed("solar") == [{"steps": 1}, {"steps": 2}]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomic(path, "old")
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "newer")
    assert path.read_text() == "new"


def make(runs, name):
    (runs / name).mkdir(parents=True)
    (runs / name / "resolved.json").write_text("{}")


def test_the_newest_run_of_an_experiment_is_found(tmp_path):
    for name in ("demo-20260724-060000", "demo-20270101-000000", "demo-20260724-070000"):
        make(tmp_path, name)
    (tmp_path / "demo-20280101-000000").mkdir()  # never got as far as being a run
    found = newest(tmp_path, "demo")
    assert found is not None
    assert found.run_id == "demo-20270101-000000"


def test_a_run_of_an_experiment_whose_name_begins_alike_is_another(tmp_path):
    make(tmp_path, "demo-20260724-060000")
    make(tmp_path, "demo-long-20270101-000000")
    make(tmp_path, "demo-2-20270101-000000")
    found = newest(tmp_path, "demo")
    assert found is not None
    assert found.run_id == "demo-20260724-060000"


def test_without_a_run_nothing_is_found(tmp_path):
    make(tmp_path, "other-20260724-060000")
    assert newest(tmp_path, "demo") is None
    assert newest(tmp_path / "nowhere", "demo") is None


OLD = (
    "t,site,intensity_g_per_kwh\n"
    "2026-07-24T06:00:00.000+00:00,solar,12.5\n"
    "2026-07-24T06:05:00.000+00:00,duck,\n"
)


def test_readings_of_an_older_run_are_read_and_go_on_in_their_own_columns(folder):
    folder.create()
    path = folder.series / "readings.csv"
    path.write_text(OLD)
    assert folder.read_readings() == READINGS[:2]
    journal = Journal(folder)
    journal.reading(READINGS[3])
    journal.close()
    assert path.read_text() == OLD + "2026-07-24T06:15:00.000+00:00,duck,7.5\n"
    assert [reading.value for reading in folder.read_readings()] == [12.5, None, 7.5]


OLD_POWER = """\
start,end,site,phase,power_w,grid_power_w,intensity_g_per_kwh
2026-07-24T06:00:00.000+00:00,2026-07-24T06:05:00.000+00:00,duck,idle,468,468,
"""


def test_power_of_before_microgrids_is_read_and_continued_as_it_is(folder):
    folder.create()
    path = folder.series / "power.csv"
    path.write_text(OLD_POWER)
    journal = Journal(folder)
    journal.power([(Segment("duck", "idle", T + 300, T + 600, 468.0, 9.0), 468.0)])
    journal.close()
    assert path.read_text().splitlines()[2].endswith("+00:00,duck,idle,468,468,9")
    assert [row.segment.flow for row in folder.read_power()] == [None, None]
    assert [row.segment.intensity_g_per_kwh for row in folder.read_power()] == [None, 9.0]
