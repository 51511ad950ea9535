"""Which ports a run needs, and whether it can have them: said before anything is started."""

import socket

from uncurtail.config import Config, ConfigError
from uncurtail.core.section import place


def check_port(config: Config) -> None:
    """See that the ports that were asked for are free, and that a SuperLink is where it is said.

    Raises:
        ConfigError: One is taken, or nobody answers there.
    """
    port = config.flower.port
    if port and listens(port):
        raise ConfigError(
            f"flower.port = {port} is taken: choose another, or 0 for a free one "
            "(--set flower.port=0)"
        )
    if config.flower.superlink is not None:
        host, theirs = place(config.flower.superlink)
        if not listens(theirs, host):
            raise ConfigError(
                f"flower.superlink = {config.flower.superlink} does not answer: start it, or leave "
                "the key out for one of the run's own"
            )
    if config.gate.address is not None:
        _, ours = place(config.gate.address)
        why = _refusal(config.gate.listen, ours)
        if why is not None:
            raise ConfigError(
                f"the gate cannot listen on {config.gate.listen}, port {ours} ({why}): choose "
                "another port in gate.address, or an address of this machine as gate.listen"
            )


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody answers there."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=0.5):
            return True
    except OSError:
        return False


def _refusal(host: str, port: int) -> str | None:
    """Why this process cannot listen there: it is taken, or not allowed, or no address of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            return None
    except OSError as error:
        return error.strerror or str(error)
