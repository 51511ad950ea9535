"""What `uncurtail fleet` does: ends what a run left on machines elsewhere."""

from pathlib import Path

from uncurtail import provisioning, wiring
from uncurtail.adapters import children, clock
from uncurtail.adapters.remote import RemoteProvisioner
from uncurtail.config import Config
from uncurtail.core import fleet
from uncurtail.errors import UserError
from uncurtail.runfolder import SUPERVISOR


class NotReleasedError(UserError):
    """Machines are left; the line says which, and why."""


def release(path: Path) -> str:
    """Delete what a run left; what to print.

    Raises:
        UserError: It is no run folder, the run is going on, or machines cannot be deleted.
    """
    folder = wiring.open_run(path)
    config = wiring.read_config(folder)
    if not provisioning.made_elsewhere(config):
        return f"{folder.run_id} has no machines elsewhere: what it starts here ends with it."
    if children.introduced(folder.private / SUPERVISOR) is not None:
        raise UserError(f"{folder.run_id} is going on: stop it first, it releases its machines")
    provisioning.check(config)
    states = fleet.replay(config.sites, folder.read_events())
    last = {name: state.session for name, state in states.items()}
    for left in provisioning.leftovers(config, folder.run_id, last):
        wait_until_gone(config, left)
    return f"No machine of {folder.run_id} is left."


def wait_until_gone(config: Config, left: RemoteProvisioner) -> None:
    """Step until nothing exists any more.

    Raises:
        NotReleasedError: That took longer than fleet.remote.release_wall_s.
    """
    give_up = clock.monotonic() + config.fleet.remote.release_wall_s
    while clock.monotonic() < give_up:
        pause_s = left.step()
        if not left.alive():
            return
        clock.pause(pause_s, config.fleet.remote.poll_wall_s)
    names = ", ".join(f"{site}.{n}" for site, found in left.alive().items() for n in sorted(found))
    why = f": {left.trouble}" if left.trouble else ""
    raise NotReleasedError(
        f"machines are left, or may be, of {names}{why}. Try again, or look at the cloud's own page"
    )
