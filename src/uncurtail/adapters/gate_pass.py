"""What lets a machine elsewhere in at a run's gate, as variables and as a file."""

import base64
import json
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from uncurtail.errors import UserError

# The environment of a machine elsewhere: where the gate is, how to trust it, who we are.
ADDRESS = "UNCURTAIL_GATE"
AUTHORITY = "UNCURTAIL_GATE_CA"
TOKEN = "UNCURTAIL_SITE_TOKEN"

PASS_FILE = "gate.json"  # in the private part of a folder that joined


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets a machine in: HOST:PORT of the gate, its authority (PEM), the site's token."""

    address: str
    authority: str
    site: str
    token: str

    def environment(self) -> dict[str, str]:
        """As variables, for whoever starts the machine."""
        pem = base64.b64encode(self.authority.encode()).decode()
        return {ADDRESS: self.address, AUTHORITY: pem, TOKEN: self.token}

    @classmethod
    def of(cls, site: str, environment: Mapping[str, str]) -> Self:
        """From the variables that `environment` gives.

        Raises:
            UserError: One is missing, or is none.
        """
        for name in (ADDRESS, AUTHORITY, TOKEN):
            if not environment.get(name):
                raise UserError(
                    f"{name} is not set: copy the variables that uncurtail site invite RUN {site} "
                    "prints where the run is"
                )
        try:
            pem = base64.b64decode(environment[AUTHORITY], validate=True).decode("ascii")
            ssl.create_default_context(cadata=pem)
        except (ValueError, ssl.SSLError):
            raise UserError(f"{AUTHORITY} is no certificate: copy all of it") from None
        return cls(environment[ADDRESS], pem, site, environment[TOKEN])

    def save(self, path: Path) -> None:
        """Write for this user alone."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read what `save` wrote; None where there is nothing: this site runs beside its run."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
