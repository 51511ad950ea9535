"""An experiment as a Flower app: a folder that `flwr run` takes, on any SuperLink of the user's."""

import shutil
from pathlib import Path

from uncurtail import config
from uncurtail.adapters.flower_commands import write_app
from uncurtail.config import Config, ConfigError

EXPERIMENT = "experiment.toml"


def make_app(experiment: Path, overrides: list[str], folder: Path) -> str:
    """Write the app of an experiment; what to print.

    Raises:
        ConfigError: The experiment cannot be run so, or the folder holds something else.
    """
    settings = config.load(experiment, overrides)
    superlink = check_hosted(settings)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _ours(folder)):
        raise ConfigError(f"{folder} holds something else: name a new folder")
    about = f"{settings.name}: trained on power that would otherwise be curtailed"
    package = write_app(folder, about, shim(overrides), {"set": "", "runs": "runs"})
    shutil.copyfile(experiment, package / EXPERIMENT)
    return (
        f"Next: flwr run {folder} CONNECTION, of the SuperLink at {superlink}. Its "
        "SuperExec starts the run, in a Python that has uncurtail."
    )


def shim(overrides: list[str]) -> str:
    """The ServerApp, as its module says it; the experiment lies beside that."""
    return f"site.carrying(__file__, {EXPERIMENT!r}, {overrides!r})"


def check_hosted(settings: Config) -> str:
    """Where sites find the SuperLink that runs the app.

    Raises:
        ConfigError: They are told of none.
    """
    if settings.flower.superlink is None:
        raise ConfigError(
            "flower.superlink is not set, and sites must reach the SuperLink that flwr run uses: "
            "--set flower.superlink=HOST:PORT --set flower.superlink_ca=FILE"
        )
    return settings.flower.superlink


def _ours(folder: Path) -> bool:
    """Whether this is an app that was written here, and may be written anew."""
    return any(folder.glob(f"*/{EXPERIMENT}"))
