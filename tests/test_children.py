"""Child processes cannot be lost: found by their mark, killed to the last, tied to their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from uncurtail.adapters import children

SRC = Path(__file__).parent.parent / "src"


@pytest.fixture
def run_id(tmp_path):
    """A mark of this test's own; whatever carries it is gone afterwards."""
    name = f"test-{os.getpid()}-{tmp_path.name}"
    yield name
    assert children.kill_marked(name) == 0


@pytest.fixture
def start(run_id, tmp_path):
    """Start marked children, and collect them afterwards."""
    started = []

    def start_one(*command, **marks):
        child = children.spawn(
            command,
            marks={children.RUN: run_id, **marks},
            log=tmp_path / "logs" / "log",
            dies_with_parent=True,
        )
        started.append(child)
        return child

    yield start_one
    for child in started:
        child.kill()
        child.wait()


def python(script) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(script)]


def until(condition, seconds=10.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)


def test_a_child_is_found_by_its_marks_and_only_by_its_own(start, run_id):
    leader = start("sleep", "60", UNCURTAIL_SITE="solar", UNCURTAIL_SESSION="3")
    redis = start("sleep", "60", UNCURTAIL_ROLE="redis")
    odd = start("sleep", "60", UNCURTAIL_SESSION="third")
    found = {process.pid: process for process in children.marked(run_id)}
    assert found == {
        leader.pid: children.Marked(leader.pid, "", "solar", 3),
        redis.pid: children.Marked(redis.pid, "redis", "", 0),
        odd.pid: children.Marked(odd.pid, "", "", 0),
    }
    assert children.marked(f"{run_id}-2") == []
    assert children.marked("") == []


def test_this_process_is_never_found_by_its_own_mark(run_id):
    """It is the one that looks: it must not kill itself."""
    script = f"""
        import os
        from uncurtail.adapters import children
        print([p.pid for p in children.marked({run_id!r})], children.kill_marked({run_id!r}))
    """
    env = {**os.environ, children.RUN: run_id, "PYTHONPATH": str(SRC)}
    done = subprocess.run(python(script), env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[] 0\n"


def test_a_dead_child_that_nobody_collected_is_not_found(start, run_id):
    child = start("true")
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert children.marked(run_id) == []


def test_what_a_child_says_is_appended_to_its_log(start, tmp_path):
    for _ in range(2):
        start("sh", "-c", "echo said; echo cried >&2").wait()
    assert (tmp_path / "logs" / "log").read_text() == "said\ncried\nsaid\ncried\n"


def test_a_terminals_interrupt_does_not_reach_a_child(start, run_id, tmp_path):
    child = start("sleep", "60")
    assert os.getsid(child.pid) == child.pid
    with children.spawn(
        ["sleep", "60"],
        marks={children.RUN: run_id},
        log=tmp_path / "log",
        dies_with_parent=True,
        own_group=False,
    ) as member:
        assert os.getpgid(member.pid) == os.getpgid(0)
        assert member.pid in children.group(os.getpgid(0))
        assert child.pid not in children.group(os.getpgid(0))
        member.kill()


def test_our_interpreters_commands_come_first_on_a_childs_path(monkeypatch):
    monkeypatch.setenv("PATH", "/somewhere")
    first, *rest = children.environment({"A": "b"})["PATH"].split(os.pathsep)
    assert first == str(Path(sys.executable).parent)
    assert rest == ["/somewhere"]
    monkeypatch.delenv("PATH")
    assert children.environment({})["PATH"].startswith(first)
    assert children.environment({"A": "b"})["A"] == "b"
    assert "A" not in os.environ


STUBBORN = "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; sleep 60 & sleep 60' & sleep 60"


def test_every_marked_process_is_killed_whatever_it_ignores_and_wherever_it_hides(start, run_id):
    start("sh", "-c", STUBBORN)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        until(lambda: len(children.marked(run_id)) == 5)
        assert children.kill_marked(run_id) == 0
        assert children.marked(run_id) == []
        assert bystander.poll() is None
        bystander.kill()


def test_those_that_cannot_be_ended_are_counted(start, run_id, monkeypatch):
    start("sleep", "60")
    with monkeypatch.context() as patch:
        patch.setattr(children, "signal_pid", lambda _pid, _number: None)
        assert children.kill_marked(run_id, rounds=1) == 1


PARENT = """
    import sys, time
    from pathlib import Path
    from uncurtail.adapters import children
    child = children.spawn(
        ["sleep", "60"], marks={{}}, log=Path({log!r}), dies_with_parent={tied}
    )
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent tie is Linux's")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "not-tied"])
def test_a_tied_child_dies_with_its_parent_even_by_sigkill(run_id, tmp_path, tied):
    script = PARENT.format(log=str(tmp_path / "log"), tied=tied)
    env = {**os.environ, children.RUN: run_id, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(python(script), env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        grandchild = psutil.Process(int(parent.stdout.readline()))
        assert grandchild.is_running()
        parent.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs([grandchild], timeout=5.0 if tied else 0.5)
    assert left == ([] if tied else [grandchild])


def test_a_process_is_told_from_a_later_one_with_its_pid(start):
    child = start("sleep", "60")
    since = children.started(child.pid)
    assert children.alive(child.pid, since)
    assert not children.alive(child.pid, since - 1.0), "the pid was used before"
    assert not children.alive(child.pid, since + 1.0), "the pid was used again"
    child.kill()
    until(lambda: not children.alive(child.pid, since))  # a zombie lives no more
    child.wait()
    assert not children.alive(child.pid, since)


def test_what_one_process_notes_of_itself_another_recognises(tmp_path):
    note = tmp_path / "note.json"
    assert children.introduced(note) is None, "nobody noted himself yet"
    script = f"""
        from pathlib import Path
        from uncurtail.adapters import children
        children.introduce(Path({str(note)!r}))
        print(flush=True)
        input()
    """
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(
        python(script), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert children.introduced(note) == other.pid
        other.communicate("\n")
    assert children.introduced(note) is None, "it has ended"
    children.introduce(note)
    assert children.introduced(note) == os.getpid()


def test_a_signal_to_a_process_that_is_gone_is_what_was_wanted(start):
    child = start("true")
    child.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)
    children.signal_pid(child.pid, signal.SIGTERM)  # and it does not raise


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
def test_an_orphan_is_adopted_and_collected_and_the_own_children_are_left_alone():
    script = """
        import os, subprocess, time
        import psutil
        from uncurtail.adapters import children
        children.become_subreaper()
        own = subprocess.Popen(["true"])
        subprocess.run(["sh", "-c", "sleep 0.2 & true"], check=True)
        (orphan,) = [p for p in psutil.Process().children() if p.pid != own.pid]
        while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        children.reap([own])
        print([p.pid == own.pid for p in psutil.Process().children()], own.wait())
    """
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(python(script), env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[True] 0\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_a_child_and_what_it_starts_keep_to_their_cpus(start, tmp_path):
    cpu = min(os.sched_getaffinity(0))
    go, said = tmp_path / "go", tmp_path / "said"
    child = start(
        *python(f"""
        import os, pathlib, subprocess, sys, time
        while not pathlib.Path({str(go)!r}).exists():
            time.sleep(0.01)
        grandchild = "import os; print(sorted(os.sched_getaffinity(0)))"
        text = subprocess.run([sys.executable, "-c", grandchild], capture_output=True, text=True)
        pathlib.Path({str(said)!r}).write_text(text.stdout)
        """)
    )
    children.keep_to(child.pid, [cpu, 9999])
    go.touch()
    assert child.wait(timeout=20) == 0
    assert said.read_text() == f"[{cpu}]\n"
    children.keep_to(child.pid, [cpu])  # gone: nothing to do
