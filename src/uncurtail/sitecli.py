"""The `site` commands: parse, call one function."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="What a provisioner starts on a site.")


@app.callback()
def site() -> None:
    """What a provisioner starts on a site."""


@app.command()
def lead(folder: Path, site: str, session: int) -> None:
    """Head one session of a site: trainer, SuperNode and SuperExec in one process group."""
    from uncurtail.site.start import lead_session

    raise typer.Exit(lead_session(folder, site, session))


@app.command()
def train(folder: Path, site: str, session: int, socket: Path) -> None:
    """Be the long-lived trainer of a session, answering orders on a Unix socket."""
    from uncurtail.site.start import train_session

    train_session(folder, site, session, socket)


@app.command()
def join(
    home: Annotated[
        Path | None, typer.Option(help="What is kept here between sessions; the user's cache.")
    ] = None,
    stay: Annotated[
        bool,
        typer.Option(
            "--stay", help="After the one session wait to be ended: for pods that restart."
        ),
    ] = False,
) -> None:
    """Be a site of a run elsewhere, as long as that run wants it.

    The environment says which: uncurtail site invite RUN SITE prints it, where the run is. All
    that this machine needs is a way to that one address.
    """
    from uncurtail.site.join import join_run

    raise typer.Exit(join_run(home, stay=stay))


@app.command()
def invite(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo-20260601-120000.")
    ],
    site: Annotated[str, typer.Argument()],
) -> None:
    """Print what lets another machine join as this site: keep it to yourself."""
    from uncurtail.gating import invite

    typer.echo(invite(folder, site))
