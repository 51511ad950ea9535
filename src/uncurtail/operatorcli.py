"""The `operator` commands: parse, call one function."""

from typing import Annotated

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
    from uncurtail.deploy.text import as_yaml
    from uncurtail.operator.crd import crds

    typer.echo(as_yaml(crds()), nl=False)


@app.command()
def run(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Only Federations of this namespace; may be repeated.")
    ] = None,
    health_port: Annotated[int, typer.Option(help="Answers /healthz.")] = 8081,
    metrics_port: Annotated[int, typer.Option(help="Answers Prometheus; 0 for none.")] = 8080,
    elect: Annotated[
        bool, typer.Option(help="Lead only while holding the Lease uncurtail-operator.")
    ] = True,
) -> None:
    """Keep every Federation of a cluster as it should be, until told to end.

    In a pod its service account says where the cluster is; elsewhere KUBECONFIG does.
    """
    from uncurtail.adapters.kubernetes_api import require

    for package in ("kopf", "lightkube", "prometheus_client"):
        require(package)
    from uncurtail.operating.app import Options, run

    raise typer.Exit(run(Options(tuple(namespace or ()), health_port, metrics_port, elect)))
