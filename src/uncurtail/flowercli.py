"""The `flower` commands: parse, call one function."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Runs that start with Flower's own tools.")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, there as here."),
]


@app.callback()
def flower() -> None:
    """Runs that start with Flower's own tools."""


@app.command("app")
def write(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    folder: Annotated[Path, typer.Argument(help="The app's; made, or written anew.")],
    set_: Overrides = None,
) -> None:
    """Write an experiment as a Flower app, which flwr run starts on a SuperLink of yours.

    The experiment says where that is, for its sites: flower.superlink and flower.superlink_ca. It
    runs with --isolation process and --enable-supernode-auth. Its SuperExec runs in a Python that
    has uncurtail; there are the run folder, and whatever files the experiment names:

    flwr run FOLDER CONNECTION --stream

    flwr run FOLDER CONNECTION --run-config 'set="rounds.length_s=600 seed=2" runs="/data/runs"'

    The same command again goes on with the newest run of the experiment that has not ended, with
    the settings that it began with. flwr stop cuts a run off, which loses the open round; kill -INT
    of its supervisor, which its log names, drains.
    """
    from uncurtail.flowerapp import make_app

    typer.echo(make_app(experiment, set_ or [], folder))


@app.command(hidden=True)
def attend(
    coordinator: int,
    experiment: Path,
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
) -> None:
    """Be the supervisor of a run that its parent, a ServerApp, coordinates."""
    from uncurtail.attending import attend

    raise typer.Exit(attend(coordinator, experiment, set_ or [], runs))
