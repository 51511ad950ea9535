"""`uncurtail site join`: a machine elsewhere becomes the site that its environment names."""

import logging
import os
import signal
from pathlib import Path

from uncurtail.adapters import children
from uncurtail.adapters.blobs import UnusableError
from uncurtail.adapters.gate_client import Gate
from uncurtail.adapters.gate_pass import ADDRESS, Pass
from uncurtail.core.section import place
from uncurtail.errors import UserError
from uncurtail.lm.prepare import cache_folder
from uncurtail.site.machine import Ended, Machine


def join_run(home: Path | None, *, stay: bool = False) -> int:
    """Be the site that the environment names until its run ends or wants it no more.

    With UNCURTAIL_SESSION for that session alone, as on a machine that was made for it; without,
    for each session that the run wants here, one after the other. Returns 0 when told to end.

    Args:
        home: What is kept here between sessions; None for the user's cache.
        stay: After that session wait to be told to end, where somebody would start us anew.

    Raises:
        UserError: The environment is incomplete, the gate does not let us in, or this machine
            cannot be made ready.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    site = os.environ.get(children.SITE)
    if not site:
        raise UserError(
            f"{children.SITE} is not set: copy what uncurtail site invite RUN SITE prints"
        )
    leave = Pass.of(site, os.environ)
    try:
        place(leave.address)
    except ValueError as error:
        raise UserError(f"{ADDRESS} = {leave.address!r} {error}") from None
    only = _only(os.environ.get(children.SESSION))
    gate = Gate(leave)
    machine = Machine(leave, gate, home or cache_folder() / "sites")
    children.become_subreaper()  # also where we are not process 1, as in a container
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, machine.asked_to_end)
    try:
        machine.prepare()
        code = machine.serve(only)
        if stay and code == 0:
            machine.wait_for_the_end()
        return code
    except Ended:
        return 0
    except UnusableError as error:
        raise UserError(f"{error}: prepare the data again where the run is") from None
    finally:
        machine.end()
        gate.close()


def _only(session: str | None) -> int | None:
    if session is None:
        return None
    if not session.isdecimal() or int(session) == 0:
        raise UserError(f"{children.SESSION} = {session!r} is no session: 1, 2, ... or not set")
    return int(session)
