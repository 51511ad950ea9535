"""The run's gate: what it opens to, and how the machines of sites elsewhere are let in."""

import json
import subprocess
import threading
from pathlib import Path

from uncurtail import wiring
from uncurtail.adapters import children
from uncurtail.adapters.blobs import UnusableError
from uncurtail.adapters.certificates import flower_key, session_key
from uncurtail.adapters.flower_commands import Flower
from uncurtail.config import Config, ConfigError
from uncurtail.core import slots
from uncurtail.core.rounds import member
from uncurtail.core.section import place
from uncurtail.lm.sections import ModelSection
from uncurtail.provisioning import invitation
from uncurtail.runfolder import RunFolder

# Shorter than a machine waits for our answer.
REGISTER_TIMEOUT_S = 45.0
IN_USE = "already in use"  # what Flower 1.41 says of a key that it knows


def serve_gate(path: Path) -> None:
    """Be a run's gate until somebody ends this process."""
    from uncurtail.adapters.gate_bodies import Spool
    from uncurtail.adapters.gate_listen import serve
    from uncurtail.adapters.gate_server import Behind, app
    from uncurtail.adapters.redis import GateState

    folder = wiring.open_run(path)
    config = wiring.read_config(folder)
    endpoints = wiring.Endpoints.load(folder)
    flower = wiring.flower(folder, endpoints)
    if config.gate.address is None:
        raise ConfigError(f"{folder.run_id} has no gate: set gate.address")
    registry = Registry(folder, flower)
    spool = Spool(folder.private / "incoming", config.store.min_free_bytes)
    spool.clear()
    update, state = most_bytes(config.model)
    behind = Behind(
        run=folder.run_id,
        config=folder.resolved.read_text(encoding="utf-8"),
        sites=elsewhere(config),
        secret=folder.gate_secret.read_bytes(),
        superlink=f"https://{flower.address}",
        authority=flower.authority,
        data=Path(endpoints.data),
        records=folder.site,
        store=wiring.store(config, folder),
        state=GateState(endpoints.redis_url, folder.run_id, list(config.sites)),
        spool=spool,
        most_update_bytes=update,
        most_state_bytes=state,
        register=registry.register,
        registered=registry.knows,
    )
    port = place(config.gate.address)[1]
    serve(app(behind), flower.certificates, config.gate.listen, port)


def elsewhere(config: Config) -> frozenset[str]:
    """The sites that the gate lets in: two machines for one session would be one too many."""
    kinds = slots.kinds(config.fleet, config.sites)
    return frozenset(site for site, kind in kinds.items() if kind != "processes")


def most_bytes(model: ModelSection) -> tuple[int, int]:
    """What an update and an optimizer's state can have at most; told without torch.

    Embedding and head, and twelve squares of the width a layer: a model has fewer parameters where
    heads share keys and values, and a thousandth more in what is small. At 4 bytes each, and Adam's
    two states; a quarter more for headers and names.
    """
    width = model.width
    parameters = 2 * model.vocab_size * width + 12 * model.depth * width * width
    return 5 * parameters + (1 << 20), 10 * parameters + (1 << 20)


def invite(path: Path, site: str) -> str:
    """What to type on a machine that is to be this site.

    Raises:
        ConfigError: There is no such site elsewhere, or its run has no gate.
    """
    folder = wiring.open_run(path)
    config = wiring.read_config(folder)
    if site not in config.sites:
        raise ConfigError(f"{folder.run_id} has no site {site}: it has {', '.join(config.sites)}")
    if site not in elsewhere(config):
        raise ConfigError(
            f'{site} runs where {folder.run_id} does: only a site with kind = "static" can be '
            "another machine"
        )
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
        self._flower = flower
        self._one_at_a_time = threading.Lock()  # each is a process, and two could be of one session
        done = [path for path in self._folder.glob("*") if path.suffix != ".pub"]
        self._known = {flower_key(path.read_text(encoding="utf-8")) for path in done}

    def knows(self, key: str) -> bool:
        """Whether a session has this public key, as a SuperNode's header spells it."""
        return key in self._known

    def register(self, site: str, session: int, public_key: str) -> str | None:
        """Register a session's key under its name; why it could not be, or None.

        Asking again with the same key is answered the same; with another one it is refused: a
        session has one key.

        Raises:
            UnusableError: It has another key already.
            ValueError: It is no key as sessions have.
        """
        public_key = session_key(public_key)
        with self._one_at_a_time:
            return self._register(member(site, session), public_key)

    def _register(self, name: str, public_key: str) -> str | None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        done, asked = self._folder / name, self._folder / f"{name}.pub"
        if done.exists():
            if done.read_text(encoding="utf-8") != public_key:
                raise UnusableError(f"{name} has another key: it is another machine's")
            return None
        # A gate that died, or was not answered, may have been heard by Flower all the same.
        again = asked.exists() and asked.read_text(encoding="utf-8") == public_key
        asked.write_text(public_key, encoding="utf-8")
        why = self._call(self._flower.register(asked, name))
        if why is not None and not (again and IN_USE in why):
            return why
        asked.rename(done)
        self._known.add(flower_key(public_key))
        return None

    def _call(self, command: list[str]) -> str | None:
        try:
            called = subprocess.run(
                command,
                env=children.environment(self._flower.environment()),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=REGISTER_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "Flower did not answer in time"
        return refusal(called.stdout, called.stderr)


def refusal(stdout: str, stderr: str) -> str | None:
    """Why `flwr --format json` did not do what it was asked to; None: it did.

    Its exit code does not say: flwr 1.41 returns 0 also where it says `"success": false`.
    """
    try:
        told = json.loads(stdout)
        if told["success"] is True:
            return None
        said = str(told["error-message"])
    except (ValueError, KeyError, TypeError):
        said = stderr or stdout
    lines = said.strip().splitlines()
    return f"Flower did not register it: {lines[-1][:200] if lines else 'it said nothing'}"
