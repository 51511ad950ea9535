"""The `deploy` commands: parse, call one function."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="A run on Kubernetes.")


@app.callback()
def deploy() -> None:
    """A run on Kubernetes."""


@app.command()
def render(  # noqa: PLR0913 - each is an option of the command
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, there as here."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Of the coordinator.")] = "default",
    image: Annotated[
        str | None, typer.Option(help="Built from deploy/Dockerfile; uncurtail:VERSION if unset.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Of the claim for run folders and data.")] = "50Gi",
    storage_class: Annotated[
        str | None, typer.Option(help="The cluster's default if unset.")
    ] = None,
    memory: Annotated[str, typer.Option(help="That the coordinator asks for.")] = "4Gi",
    gate: Annotated[
        Literal["ClusterIP", "LoadBalancer", "NodePort"] | None,
        typer.Option(help="Type of the gate's Service; LoadBalancer where sites are elsewhere."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Print what this context's cluster needs for its sites instead."),
    ] = None,
) -> None:
    """Print the Kubernetes documents with which an experiment runs on a cluster.

    uncurtail deploy render EXPERIMENT | kubectl apply -f -

    What a person has to do besides is told on the standard error.
    """
    from uncurtail.deploy.render import DEFAULT_IMAGE, Request
    from uncurtail.deploy.render import render as rendered

    request = Request(
        experiment=experiment,
        settings=tuple(set_ or ()),
        namespace=namespace,
        image=image or DEFAULT_IMAGE,
        storage=storage,
        storage_class=storage_class,
        memory=memory,
        service=gate,
        context=context,
    )
    made = rendered(request)
    typer.echo(made.text, nl=False)
    for note in made.notes:
        typer.echo(note, err=True)


@app.command(hidden=True)
def chart() -> None:
    """Print the template of deploy/helm/uncurtail, which is made from the same parts."""
    from uncurtail.deploy.chart import template

    typer.echo(template(), nl=False)
