"""A site on another machine: all that it knows of its run is one address, and it trains."""

import os
import signal
import subprocess
import sys

import pytest

from tests.integration.stack import ALWAYS, QUICK, SmallRun
from uncurtail.adapters import children
from uncurtail.adapters.gate_pass import ADDRESS, AUTHORITY, TOKEN
from uncurtail.adapters.redis_server import free_port
from uncurtail.core.events import RoundCommitted, SitePhase, SiteReleased
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.timeout(500)]


def invited(run: SmallRun, site: str) -> dict[str, str]:
    """What `uncurtail site invite` tells a person to type on the other machine."""
    command = [sys.executable, "-m", "uncurtail", "site", "invite", str(run.folder.path), site]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.removeprefix("export ") for line in said.splitlines()]
    assert lines[-1] == "uncurtail site join"
    variables = dict(line.split("=", 1) for line in lines[:-1])
    assert variables.keys() == {ADDRESS, AUTHORITY, TOKEN, children.SITE}
    return variables


@pytest.fixture
def machines(tmp_path):
    """Starts machines elsewhere, each with a home of its own, and leaves none."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UNCURTAIL_")}
        with (home / "output").open("ab") as output:
            machine = subprocess.Popen(
                [sys.executable, "-m", "uncurtail", "site", "join", "--home", str(home)],
                env={**environment, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(machine)
        return machine

    yield start
    for machine in started:
        if machine.poll() is None:
            os.killpg(machine.pid, signal.SIGKILL)
            machine.wait(10)
    for home in tmp_path.glob("*/*/small-*"):
        for site in ("north", "south"):
            children.kill_marked(f"{home.name}@{site}")


def test_a_site_elsewhere_trains_through_the_gate_whatever_dies(
    small_run, machines, superlink, tmp_path, monkeypatch
):
    """It is invited once, and comes back by itself after its run and itself were killed.

    And the SuperLink is none of the run's own: only the run's gate need know where it is.
    """
    monkeypatch.setenv("UNCURTAIL_SUPEREXEC_SECRET_FILE", str(superlink.secret))
    run = small_run(minutes=100_000, windows=ALWAYS, **QUICK)
    settings = [
        f"gate.address=127.0.0.1:{free_port()}",
        "gate.listen=127.0.0.1",
        "sites.south.kind=static",
        f"flower.superlink={superlink.address}",
        f"flower.superlink_ca={superlink.certificates / 'ca.crt'}",
    ]
    run.start(*(part for setting in settings for part in ("--set", setting)))
    run.until(lambda events: any(isinstance(e, SitePhase) for e in events), 90)

    def merged() -> int:
        return sum("south" in e.sites for e in run.events() if isinstance(e, RoundCommitted))

    def trains(more_than: int) -> None:
        run.until(lambda _: merged() > more_than, 150)

    variables = invited(run, "south")
    machine = machines("elsewhere", variables)
    trains(0)
    assert run.process is not None
    run.process.kill()
    run.process.wait(10)
    run.start("--resume")
    trains(merged())
    assert machine.poll() is None, "it was not started again"

    machine.kill()
    machine.wait(10)
    machine = machines("elsewhere", variables)
    trains(merged())
    run.interrupt()
    assert run.wait(60) == 130, run.output()[-3000:]
    assert [c for c in verify(run.folder) if c.passed is False] == []
    assert [e.cause for e in run.events() if isinstance(e, SiteReleased)][-1] == "drained"

    home = tmp_path / "elsewhere" / "south" / run.folder.run_id
    assert (home / "sites" / "south" / "consumed.jsonl").read_bytes() == (
        run.folder.site("south") / "consumed.jsonl"
    ).read_bytes()
    assert (run.folder.site("south") / "snapshot" / "snapshot.json").exists(), "it outlives it"
    assert not (home / "private" / "gate.secret").exists()
    assert not (run.folder.private / "superlink.db").exists(), "it started none"
    secrets = [p for p in home.rglob("*") if p.is_file() and b"redis://" in p.read_bytes()]
    assert secrets == [], "it knows of no server but the gate"
    machine.send_signal(signal.SIGTERM)
    assert machine.wait(60) == 0
    assert children.marked(f"{run.folder.run_id}@south") == []
    log = (tmp_path / "elsewhere" / "output").read_text()
    assert "Traceback" not in log
    assert log.count("cannot be reached") <= 6, "it waits quietly"
