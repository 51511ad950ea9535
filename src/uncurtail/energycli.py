"""The `energy` commands: parse, call one function."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Grids: what their windows are like, and their data.")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set energy.seed=3."),
]


@app.command()
def fetch(  # noqa: PLR0913  (options, each given by its name)
    experiment: Annotated[
        Path | None, typer.Argument(help="Whose energy source and regions to take.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="watttime, electricitymaps, prometheus or vessim.")
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="As the source names it; may be given again.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="LAT,LON", help="The region of a place (WattTime).")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="A date, or a time with offset; a month ago if not given.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Not included; this morning, UTC.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The CSV file; one in the user's cache if not given.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Fetch a region's past from a source, with your own account, as a trace for runs and plans.

    Every day is kept in the user's cache and not asked for again; after an interruption, run it
    again. Credentials: WATTTIME_USERNAME and WATTTIME_PASSWORD, ELECTRICITYMAPS_TOKEN,
    UNCURTAIL_PROMETHEUS_TOKEN (or _USERNAME and _PASSWORD), each also as ..._FILE.
    """
    from rich.console import Console

    from uncurtail import energyfetch

    request = energyfetch.Request(experiment, set_ or [], source, region or [], at, start, end, out)
    typer.echo(energyfetch.fetch(request, Console(stderr=True)))


@app.command()
def show(
    what: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT|FILE", help="An experiment, a CSV trace, or a preset."),
    ],
    region: Annotated[
        list[str] | None, typer.Option(help="Only this region or site; may be given again.")
    ] = None,
    set_: Overrides = None,
    utc_offset: Annotated[
        float | None, typer.Option(min=-12, max=14, help="Local time; an experiment says it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The picture's file, a PNG.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Say when regions are curtailed: how often, how long, at what hours; with a picture.

    A synthetic grid is looked at for a year, a CSV file for as long as it is.
    """
    from rich.console import Console

    from uncurtail import energyshow

    request = energyshow.Request(what, set_ or [], region or [], utc_offset, out)
    energyshow.show(request, Console(), as_json=as_json)
