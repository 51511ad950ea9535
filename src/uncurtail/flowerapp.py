"""An experiment as a Flower app: a folder that `flwr run` takes, on any SuperLink of the user's."""

import json
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
    check_hosted(settings)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _ours(folder)):
        raise ConfigError(f"{folder} holds something else: name a new folder")
    carried = [json.dumps(each, ensure_ascii=False) for each in overrides]
    server = (
        "site.carrying(\n"
        f'    site.Path(__file__).with_name("{EXPERIMENT}"),\n'
        f"    [{', '.join(carried)}],\n"
        ")"
    )
    about = f"{settings.name}: trained on power that would otherwise be curtailed"
    package = write_app(folder, server, {"set": "", "runs": "runs"}, about=about)
    shutil.copyfile(experiment, package / EXPERIMENT)
    return (
        f"Next: flwr run {folder} CONNECTION, of the SuperLink at {settings.flower.superlink}. Its "
        "SuperExec starts the run, in a Python that has uncurtail."
    )


def check_hosted(settings: Config) -> None:
    """See that sites can find the SuperLink that runs the app.

    Raises:
        ConfigError: They are told of none.
    """
    if settings.flower.superlink is None:
        raise ConfigError(
            "flower.superlink is not set, and sites must reach the SuperLink that flwr run uses: "
            "--set flower.superlink=HOST:PORT --set flower.superlink_ca=FILE"
        )


def _ours(folder: Path) -> bool:
    """Whether this is an app that was written here, and may be written anew."""
    return any(folder.glob(f"*/{EXPERIMENT}"))
