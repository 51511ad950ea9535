"""Vessim's own REST API, started here as it comes: what its simulation says is what we read."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from uncurtail.adapters import clock
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.vessim_api import VessimApi
from uncurtail.core.signals import Reading, usable

MISSING = [m for m in ("fastapi", "uvicorn", "requests") if importlib.util.find_spec(m) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"vessim's Api needs {', '.join(MISSING)}")

INTENSITY = 42.5  # as in vessimserver.py
SERVER = Path(__file__).parent / "vessimserver.py"


@pytest.fixture(scope="module")
def vessim_url():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, str(SERVER), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            assert "ready" in (line.strip() for line in server.stdout)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stdin.close()  # its API ends, and so does it
            server.stdout.read()


def test_a_microgrids_grid_signal_is_read_with_the_simulations_time(vessim_url):
    point = VessimApi(vessim_url, "mci").latest("oslo")
    assert point.value == INTENSITY
    reading = Reading("oslo", clock.wall(), point.value, point.t)
    assert usable(reading, clock.wall(), 900.0) == INTENSITY


def test_what_the_simulation_remembers_is_its_history(vessim_url):
    api = VessimApi(vessim_url, "mci")
    last = api.latest("oslo").t
    points = api.history("oslo", 0.0, last + 1.0)
    assert [point.t for point in points] == [last - 2.0, last - 1.0, last]
    assert {point.value for point in points} == {INTENSITY}
    assert api.history("oslo", last, last + 1.0) == points[-1:]
    assert api.forecast("oslo", last) is None


@pytest.mark.parametrize(
    ("region", "signal", "message"),
    [
        ("bonn", "mci", r"refuses \(404\): Microgrid not found: .*'bonn', it has oslo, rome"),
        ("oslo", "price", "has no grid signal 'price', it has mci: set energy.vessim_signal"),
        ("rome", "mci", "has no grid signal 'mci', it has none"),
        ("a/b", "mci", "asked for microgrid 'a/b', it has oslo, rome"),
    ],
)
def test_what_is_not_there_is_named_beside_what_is(vessim_url, region, signal, message):
    with pytest.raises(SourceError, match=message):
        VessimApi(vessim_url, signal).latest(region)


def test_a_simulation_that_ended_goes_stale_by_itself(vessim_url):
    point = VessimApi(vessim_url, "mci").latest("oslo")
    reading = Reading("oslo", point.t + 2000.0, point.value, point.t)
    assert usable(reading, point.t + 2000.0, 900.0) is None
