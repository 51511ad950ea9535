"""The coordinator's process: drives the loop by the real clock until the run has ended."""

import logging
import os
from pathlib import Path
from typing import NoReturn

from uncurtail import wiring
from uncurtail.adapters import children, clock
from uncurtail.adapters.flower_server import PostOffice
from uncurtail.runfolder import COORDINATOR, RUN_DIR, SUPERVISOR, RunFolder

log = logging.getLogger("uncurtail.coordinator")

# Between looks at replies, heartbeats and processes when simulated time has nothing due.
POLL_WALL_S = 0.1


def coordinate(post: "PostOffice") -> None:
    """Run the loop of the run that UNCURTAIL_RUN_DIR names, then return.

    Ends at once, leaving the sites to the next coordinator, when the supervisor is gone or
    another coordinator was started in its place: two must never act.
    """
    folder = RunFolder(Path(os.environ[RUN_DIR]))
    config = wiring.read_config(folder)
    post.blobs = wiring.store(config, folder)
    loop = wiring.build(config, folder, post, clock.wall())
    began = max([loop.meter.since, *(event.t for event in folder.read_events()[-1:])])
    ticking = clock.ScaledClock(began, config.clock.speed)
    mine = folder.private / COORDINATOR
    children.introduce(mine)
    loop.start(ticking.now(), ticking.wall())
    stop = folder.private / "stop"
    while not loop.finished:
        loop.asked_to_stop = stop.exists()
        if children.introduced(mine) != os.getpid():  # or asked to introduce itself, after us
            _end_at_once("another coordinator is in charge")
        if children.introduced(folder.private / SUPERVISOR) is None:
            _end_at_once("the supervisor is gone: resume with uncurtail run --resume")
        wake = loop.tick(ticking.now(), ticking.wall())
        if not loop.finished:
            ticking.sleep_until(wake, POLL_WALL_S)


def _end_at_once(reason: str) -> NoReturn:
    """End this process here; what it wrote is whole at any moment.

    Not by an exception: Flower's ServerApp would tell its SuperLink of it, and try for minutes
    where that has gone with the supervisor (seen still trying after 60 s).
    """
    log.error("%s", reason)
    logging.shutdown()
    os._exit(1)
