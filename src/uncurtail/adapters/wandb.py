"""Weights & Biases: one run of theirs for one run of ours, offline or online. Extra: `wandb`."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from uncurtail.errors import UserError

KEY = "WANDB_API_KEY"
# Their server is asked once at the start, and waited for at the end; what is not uploaded by then
# stays in RUN/wandb for `wandb sync`.
START_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 15.0

Mode = Literal["offline", "online"]


def check(mode: Mode, key: str | None) -> None:
    """See to it, before the run starts, that this can work.

    Raises:
        UserError: The package or the key is missing; one line with the remedy.
    """
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder `wandb` in the working directory is none
        raise UserError(
            f"tracking.wandb = {mode} needs the package wandb: pip install 'uncurtail[wandb]', or "
            "--set tracking.wandb=off"
        )
    if mode == "online" and not key:
        raise UserError(
            f"tracking.wandb = online needs {KEY} or {KEY}_FILE: set one, or use "
            "--set tracking.wandb=offline and upload later with `wandb sync`"
        )


class WandbTracker:
    """Rows as history of a W&B run whose id is the run's, so that a resumed run goes on there."""

    def __init__(
        self,
        folder: Path,
        project: str,
        mode: Mode,
        config: Mapping[str, Any],
        key: str | None = None,
    ) -> None:
        """Open it; what W&B writes lies in FOLDER/wandb.

        Raises:
            UserError: There is no server, or it does not take the key.
        """
        if key:
            os.environ[KEY] = key  # of this process alone; never stored in a netrc
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,  # this process's machine says nothing about the sites'
            x_disable_machine_info=True,
            init_timeout=START_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )
        try:
            self._run: Any = wandb.init(
                project=project,
                id=folder.name,
                name=folder.name,
                dir=str(folder),
                mode=mode,
                config=dict(config),
                resume="allow" if mode == "online" else None,
                settings=settings,
            )
        except wandb.Error as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"W&B: {why}: try again later, or use tracking.wandb=offline") from None
        for axis in ("tokens", "simulated_h", "wall_h"):
            self._run.define_metric(axis, hidden=True)
        self._run.define_metric("*", step_metric="tokens")

    def log(
        self, number: int, values: Mapping[str, float], axes: Mapping[str, float], _wall_s: float
    ) -> None:
        """Hand over one row; returns at once, wandb's own process writes it.

        W&B wants rows of rising number, over all the files that one run may have left.
        """
        self._run.log({**axes, **values}, step=number, commit=True)

    def flush(self) -> None:
        """Nothing to do: every row is already with wandb's own process."""

    def close(self) -> None:
        """End the run at W&B; waits for the upload, but not for ever."""
        self._run.finish()
