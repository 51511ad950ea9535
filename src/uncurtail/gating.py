"""The run's gate: what it opens to, and how the machines of sites elsewhere are let in."""

import subprocess
from pathlib import Path

from uncurtail import wiring
from uncurtail.adapters import children
from uncurtail.adapters.flower_commands import Flower
from uncurtail.config import ConfigError, place
from uncurtail.core.rounds import member
from uncurtail.provisioning import invitation
from uncurtail.runfolder import RunFolder

REGISTER_TIMEOUT_S = 60.0


def serve_gate(path: Path) -> None:
    """Be a run's gate until somebody ends this process."""
    from uncurtail.adapters.gate_server import Behind, serve
    from uncurtail.adapters.redis import GateState

    folder = RunFolder(path)
    config = wiring.read_config(folder)
    endpoints = wiring.Endpoints.load(folder)
    flower = wiring.flower(folder, endpoints)
    if config.gate.address is None:
        raise ConfigError(f"{folder.run_id} has no gate: set gate.address")
    behind = Behind(
        run=folder.run_id,
        config=folder.resolved.read_text(encoding="utf-8"),
        sites=frozenset(config.sites),
        secret=folder.gate_secret.read_bytes(),
        superlink=f"https://{flower.address}",
        authority=flower.authority,
        tls=flower.certificates,
        data=Path(endpoints.data),
        records=folder.site,
        store=wiring.store(config, folder),
        state=GateState(endpoints.redis_url, folder.run_id, list(config.sites)),
        register=Registry(folder, flower).register,
    )
    serve(behind, config.gate.listen, place(config.gate.address)[1])


def invite(path: Path, site: str) -> str:
    """What to type on a machine that is to be this site.

    Raises:
        ConfigError: There is no such site, or its run has no gate.
    """
    folder = RunFolder(path)
    if not folder.resolved.is_file():
        raise ConfigError(f"{path} is no run folder: name one below runs/")
    config = wiring.read_config(folder)
    if site not in config.sites:
        raise ConfigError(f"{folder.run_id} has no site {site}: it has {', '.join(config.sites)}")
    if config.gate.address is None:
        raise ConfigError(
            f"{folder.run_id} has no gate: start it with --set gate.address=HOST:PORT, as other "
            "machines reach this one"
        )
    variables = invitation(config, folder, site)
    lines = [f"export {name}={value}" for name, value in variables.items()]
    return "\n".join([*lines, "uncurtail site join"])


class Registry:
    """Makes the keys of sessions known to Flower, and remembers which are."""

    def __init__(self, folder: RunFolder, flower: Flower) -> None:
        self._folder = folder.private / "registered"
        self._log = folder.logs / "gate.log"
        self._flower = flower

    def register(self, site: str, session: int, public_key: str) -> str | None:
        """Register a session's key under its name; why it could not be, or None.

        Asking again with the same key is answered the same; with another one it is refused: a
        session has one key.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        done = self._folder / member(site, session)
        if done.exists():
            same = done.read_text(encoding="utf-8") == public_key
            return None if same else f"session {session} of {site} has another key"
        key = self._folder / f"{member(site, session)}.pub"
        key.write_text(public_key, encoding="utf-8")
        try:
            called = subprocess.run(
                self._flower.register(key, member(site, session)),
                env=children.environment(self._flower.environment()),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=REGISTER_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "Flower did not answer in time"
        if called.returncode != 0:
            said = (called.stderr or called.stdout).strip().splitlines()
            return f"Flower did not register it: {said[-1][:200] if said else 'it said nothing'}"
        key.rename(done)
        return None
