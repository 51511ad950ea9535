"""Vessim's REST API as it comes, over a simulation of three steps at the wall clock's time.

Run as `python vessimserver.py PORT`: prints a line when the steps are done, and keeps the API up
until its input ends.
"""

import sys
import time
from datetime import timedelta

import pandas as pd  # type: ignore[import-untyped]  # ships no types
import uvicorn
import vessim

INTENSITY = 42.5


class StaysUp(vessim.Api):  # type: ignore[misc]  # untyped
    """Vessim ends its API with the simulation; we want to ask it afterwards."""

    def finalize(self):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        super().finalize()


def on_loopback(original):
    """It listens on every address of the machine; here, on this one alone."""

    def run(app, **options):
        original(app, **{**options, "host": "127.0.0.1"})

    return run


def site():
    return {
        "actors": [vessim.Consumer("gpu", vessim.StaticSignal(200.0))],
        "dispatchables": [vessim.GridConnection()],
    }


if __name__ == "__main__":
    uvicorn.run = on_loopback(uvicorn.run)
    start = pd.Timestamp(int(time.time()), unit="s", tz="UTC")
    environment = vessim.Environment(sim_start=start, step_size=1)
    mci = {"mci": vessim.StaticSignal(INTENSITY)}
    environment.add_microgrid(name="oslo", grid_signals=mci, **site())
    environment.add_microgrid(name="rome", **site())
    environment.add_controller(StaysUp(broker_port=int(sys.argv[1]), request_timeout=50.0))
    environment.run(until=timedelta(seconds=3))
