"""Vessim's own REST API, started here as it comes: what its simulation says is what we read."""

import importlib.util
import math
import socket
from datetime import timedelta

import pytest

from uncurtail.adapters import clock
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.vessim_api import VessimApi
from uncurtail.core.signals import Reading, usable

MISSING = [m for m in ("fastapi", "uvicorn", "requests") if importlib.util.find_spec(m) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"vessim's Api needs {', '.join(MISSING)}")

INTENSITY = 42.5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def vessim_url():
    """A simulation of three steps at the wall clock's time; its API stays up until it is closed."""
    import vessim

    port, held = free_port(), []

    class KeepApi(vessim.Api):
        """Vessim ends its API with the simulation; we want to ask it afterwards."""

        def finalize(self):
            held.append(super().finalize)

    with pytest.MonkeyPatch.context() as patch:
        # It listens on every address of the machine; in a test, on this one alone.
        patch.setattr("uvicorn.run", on_loopback_alone())
        environment = vessim.Environment(sim_start=now(), step_size=1)
        environment.add_microgrid(
            name="oslo",
            actors=[vessim.Consumer("gpu", vessim.StaticSignal(200.0))],
            dispatchables=[vessim.GridConnection()],
            grid_signals={"mci": vessim.StaticSignal(INTENSITY)},
        )
        environment.add_microgrid(
            name="rome",
            actors=[vessim.Consumer("gpu", vessim.StaticSignal(200.0))],
            dispatchables=[vessim.GridConnection()],
        )
        environment.add_controller(KeepApi(broker_port=port, request_timeout=30.0))
        environment.run(until=timedelta(seconds=3))
    yield f"http://127.0.0.1:{port}"
    for finalize in held:
        finalize()


def now():
    import pandas as pd

    return pd.Timestamp(math.floor(clock.wall()), unit="s", tz="UTC")


def on_loopback_alone():
    import uvicorn

    original = uvicorn.run

    def run(app, **options):
        original(app, **{**options, "host": "127.0.0.1"})

    return run


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
