"""TensorBoard: event files in RUN/tensorboard, over tokens and wall time. Extra: `tensorboard`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uncurtail.errors import UserError


def check() -> None:
    """See to it, before the run starts, that this can work.

    Raises:
        UserError: The package is missing; one line with the remedy.
    """
    spec = importlib.util.find_spec("tensorboard")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        raise UserError(
            "tracking.tensorboard needs the package tensorboard: pip install "
            "'uncurtail[tensorboard]', or --set tracking.tensorboard=false"
        )


class TensorBoardTracker:
    """Rows as scalars. A start is a file of its own: a torn end of an older one harms nobody."""

    def __init__(self, folder: Path) -> None:
        """Open a new event file in FOLDER/tensorboard."""
        # not torch.utils.tensorboard: this process shall not import torch
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer: Any = EventFileWriter(str(folder / "tensorboard"))

    def log(
        self, _number: int, values: Mapping[str, float], axes: Mapping[str, float], wall_s: float
    ) -> None:
        """Hand over one row; `tokens` is the step axis."""
        scalars = {**values, **{f"axes/{name}": value for name, value in axes.items()}}
        summary = self._summary(
            value=[
                self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()
            ]
        )
        self._writer.add_event(
            self._event(wall_time=wall_s, step=int(axes["tokens"]), summary=summary)
        )

    def flush(self) -> None:
        """Write what was handed over."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
