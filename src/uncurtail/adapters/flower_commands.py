"""Flower's command lines, as flwr 1.41 takes them; the only place that spells its flags.

Every process gets a private FLWR_HOME, no telemetry, no update check and no runtime installs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONNECTION = "uncurtail"
APP_PACKAGE = "uncurtail_app"

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # 0.1 s between looks for a new task: with an order queued ahead, a site is idle for ~1.2 s.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "NO_COLOR": "1",
}


@dataclass(frozen=True, slots=True)
class Flower:
    """A run's own SuperLink: where it is reached, and what proves who is who.

    It listens on loopback. A site elsewhere reaches it through the run's gate, at `host`.
    """

    private: Path
    port: int
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        """Where SuperLink is reached."""
        return f"{self.host}:{self.port}"

    @property
    def home(self) -> Path:
        """Flower's private home."""
        return self.private / "flwr"

    @property
    def certificates(self) -> Path:
        """ca.crt, server.crt, server.key."""
        return self.private / "tls"

    @property
    def authority(self) -> Path:
        """What SuperLink's certificate is checked with: another's where it is not our own."""
        found = self.private / "superlink-ca.crt"
        return found if found.exists() else self.certificates / "ca.crt"

    @property
    def secret(self) -> Path:
        """What a SuperExec must know to be given a task by our own."""
        return self.private / "superexec.secret"

    @property
    def superlink_secret(self) -> Path:
        """What a SuperExec must know to be given a task by a SuperLink that is not our own."""
        return self.private / "superlink.secret"

    def environment(self) -> dict[str, str]:
        """What every Flower process of this run needs to know."""
        return {**ENVIRONMENT, "FLWR_HOME": str(self.home)}

    def superlink(self) -> list[str]:
        """SuperLink: TLS, authenticated SuperNodes, survives a restart with its database."""
        tls = self.certificates
        return [
            "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(tls / "ca.crt")),
            *("--ssl-certfile", str(tls / "server.crt")),
            *("--ssl-keyfile", str(tls / "server.key")),
            *("--isolation", "process", "--enable-supernode-auth"),
            *("--superexec-auth-secret-file", str(self.secret)),
            *("--database", str(self.private / "superlink.db")),
            "--disable-runtime-dependency-installation",
        ]

    def superexec(self) -> list[str]:
        """What starts our ServerApp, in our process group, with our environment."""
        command = ["flower-superexec", "--runtime-api-address", self.address]
        command += ["--root-certificates", str(self.authority)]
        theirs = (self.private / "superlink-ca.crt").exists()
        secret = self.superlink_secret if theirs else self.secret
        if secret.exists():  # another's SuperLink may ask for none
            command += ["--superexec-auth-secret-file", str(secret)]
        return command

    def run(self) -> list[str]:
        """Submit the app: a shim that imports the installed package."""
        return ["flwr", "run", str(self.private / "app"), CONNECTION, "--format", "json"]

    def register(self, public_key: Path, name: str) -> list[str]:
        """Make a session's key known under its name, before it starts."""
        return [
            *("flwr", "supernode", "register", str(public_key), CONNECTION),
            *("--name", name, "--format", "json"),
        ]

    def supernode(self, key: Path, port: int, socket: Path) -> list[str]:
        """A site's SuperNode; its ClientApp finds the trainer at `socket`."""
        return [
            "flower-supernode",
            *("--superlink", self.address),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(key)),
            *("--isolation", "process", "--host", "127.0.0.1", "--port", str(port)),
            *("--superexec-auth-secret-file", str(self.secret)),
            *("--node-config", f"socket={json.dumps(str(socket))}"),
        ]

    def site_superexec(self, port: int) -> list[str]:
        """What starts a site's ClientApps; they hand orders to the trainer and answers back."""
        return [
            "flower-superexec",
            *("--runtime-api-address", f"127.0.0.1:{port}", "--insecure"),
            *("--superexec-auth-secret-file", str(self.secret)),
        ]

    def write_home(self) -> None:
        """Write the connection that `flwr` uses, and the app that it submits."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate = json.dumps(str(self.authority))
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{self.address}"\nroot-certificates = {certificate}\n',
            encoding="utf-8",
        )
        write_app(self.private / "app", "One run of uncurtail", "site.app", {})


def write_app(app: Path, about: str, server: str, config: Mapping[str, str]) -> Path:
    """Write a Flower app, a shim that imports the installed package; where its modules are.

    Args:
        app: The folder; what else is in there stays.
        about: What the app is, for people.
        server: The ServerApp, as the shim says it: `site` is `adapters.flower_server`.
        config: What `flwr run --run-config` may set, and what it is set to without that.
    """
    package = app / APP_PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    settings = "".join(f"{key} = {_quoted(value)}\n" for key, value in config.items())
    project = _APP_PROJECT.format(description=_quoted(about), config=settings)
    (app / "pyproject.toml").write_text(project, encoding="utf-8")
    (package / "__init__.py").write_text('"""The Flower app of uncurtail."""\n')
    parts = (("server", "flower_server", server), ("client", "flower_client", "site.app"))
    for part, module, found in parts:
        # `flwr run` reads the file and wants to see an assignment to `app`.
        (package / f"{part}.py").write_text(
            f"import uncurtail.adapters.{module} as site\n\napp = {found}\n", encoding="utf-8"
        )
    return package


def _quoted(text: str) -> str:
    """A string as TOML writes it: as JSON does, but for pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)


_APP_PROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "uncurtail-app"
version = "1.0.0"
description = {{description}}
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "uncurtail"

[tool.flwr.app.components]
serverapp = "{APP_PACKAGE}.server:app"
clientapp = "{APP_PACKAGE}.client:app"

[tool.flwr.app.config]
{{config}}"""
