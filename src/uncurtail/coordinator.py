"""The coordinator's process: drives the loop by the real clock until the run has ended."""

import logging
import os
from pathlib import Path
from typing import NoReturn

from uncurtail import wiring
from uncurtail.adapters import children, clock
from uncurtail.adapters.flower_server import PostOffice
from uncurtail.errors import UserError
from uncurtail.runfolder import COORDINATOR, RUN_DIR, SUPERVISOR, RunFolder

log = logging.getLogger("uncurtail.coordinator")

# Between looks at replies, heartbeats and processes when simulated time has nothing due.
POLL_WALL_S = 0.1


class DeposedError(UserError):
    """Somebody else acts for this run, or nobody may: this process must end."""


def coordinate_named(post: PostOffice) -> None:
    """Coordinate the run that UNCURTAIL_RUN_DIR names, then return.

    Raises:
        UserError: It names none: this app is for the SuperExec of `uncurtail run` alone.
    """
    path = os.environ.get(RUN_DIR)
    if path is None:
        raise UserError(
            f"{RUN_DIR} is not set: another SuperExec was given the app of uncurtail run than its "
            "own. End that SuperExec first, or start with flwr run: uncurtail flower app --help"
        )
    try:
        coordinate(post, RunFolder(Path(path)))
    except DeposedError as error:
        _end_at_once(str(error))


def coordinate(post: PostOffice, folder: RunFolder) -> None:
    """Run the loop of a run, then return.

    Raises:
        DeposedError: The supervisor is gone, or another coordinator was started in this one's
            place: two must never act. The sites are left to the next coordinator.
    """
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
            raise DeposedError("another coordinator is in charge")
        if children.introduced(folder.private / SUPERVISOR) is None:
            raise DeposedError("the supervisor is gone: resume with uncurtail run --resume")
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
