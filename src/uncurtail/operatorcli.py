"""The `operator` commands: parse, call one function."""

import typer

app = typer.Typer(no_args_is_help=True, help="Flower federations on Kubernetes.")


@app.callback()
def operator() -> None:
    """Flower federations on Kubernetes."""


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinitions, for kubectl apply.

    uncurtail operator crd | kubectl apply --server-side -f -
    """
    from uncurtail.operator.crd import as_yaml, crds

    typer.echo(as_yaml(crds()), nl=False)
