"""The `fleet` commands: parse, call one function."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Machines elsewhere that a run made.")


@app.callback()
def fleet() -> None:
    """Machines elsewhere that a run made."""


@app.command()
def release(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo-20260601-120000.")
    ],
) -> None:
    """Delete every machine that a run made and left, and wait until they are gone.

    A run does this at its end by itself, and a resumed one goes on with its machines: this is for
    one that was killed and will not be resumed.
    """
    from uncurtail import fleetcommands

    typer.echo(fleetcommands.release(folder))
