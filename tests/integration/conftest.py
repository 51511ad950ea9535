import socket
import subprocess
import time

import pytest

from tests.integration.stack import SmallRun
from uncurtail.adapters import certificates, children
from uncurtail.adapters.flower_commands import Flower
from uncurtail.adapters.redis_server import free_port


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """One prepared corpus for all runs of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_run(tmp_path, cache_home, monkeypatch):
    """Makes real runs, and leaves nothing of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    made: list[SmallRun] = []

    def make(**options) -> SmallRun:
        made.append(SmallRun(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for run in made:
        run.clean_up()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def superlink(tmp_path):
    """A SuperLink that somebody else runs; its port, and the settings that name it."""
    flower = Flower(tmp_path / "superlink", free_port())
    certificates.write_server_certificates(flower.certificates)
    flower.secret.write_text("known to both")
    with (tmp_path / "superlink" / "log").open("wb") as log:
        process = subprocess.Popen(
            flower.superlink(),
            env=children.environment(flower.environment()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    give_up = time.monotonic() + 60.0
    while not listens(flower.port):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.2)
    yield flower
    process.kill()
    process.wait(10)
