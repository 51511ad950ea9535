"""An experiment as Kubernetes documents, one cluster at a time, and what a person does first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uncurtail import __version__, config
from uncurtail.config import Config, ConfigError
from uncurtail.deploy import clusters, coordinator, needs
from uncurtail.deploy.clusters import Placed
from uncurtail.deploy.coordinator import Coordinator, ServiceType
from uncurtail.deploy.parts import KUBECONFIG_FILE, Name
from uncurtail.deploy.text import as_yaml
from uncurtail.operator.fields import Manifest
from uncurtail.provisioning import sites_of

DEFAULT_IMAGE = f"uncurtail:{__version__}"


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. Without a context: the coordinator, and sites beside it."""

    experiment: Path
    settings: tuple[str, ...] = ()
    namespace: str = "default"
    image: str = DEFAULT_IMAGE
    storage: str = "50Gi"
    storage_class: str | None = None
    memory: str = "4Gi"
    service: ServiceType | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The documents of one cluster, and what to say beside them."""

    documents: list[Manifest]
    notes: list[str]

    @property
    def text(self) -> str:
        """As kubectl apply takes it."""
        return as_yaml(self.documents)


def render(request: Request) -> Rendered:
    """What one cluster has to be told.

    Raises:
        ConfigError: The experiment is wrong, or cannot run there.
    """
    settings = config.load(request.experiment, request.settings)
    needs.check(settings)
    name = Name(f"uncurtail-{settings.name}", request.namespace)
    places = clusters.placed(settings, request.namespace)
    if request.context is not None:
        return _region(request, settings, name.of, places)
    here = [place for place in places if place.context is None]
    elsewhere = list(dict.fromkeys(p.context for p in places if p.context is not None))
    outside = bool(elsewhere or sites_of(settings, "static") or sites_of(settings, "exalsius"))
    made = Coordinator(
        name=name,
        image=request.image,
        experiment=request.experiment.read_text(encoding="utf-8"),
        settings=request.settings,
        gate=needs.gate(settings, name, request.service, outside=outside),
        needs_credentials=bool(needs.needed(settings)),
        in_cluster=bool(here),
        elsewhere=bool(elsewhere),
        storage=request.storage,
        storage_class=request.storage_class,
        memory=request.memory,
        grace_s=needs.grace_s(settings),
    )
    spaces = dict.fromkeys([request.namespace, *clusters.namespaces(here)])
    documents = [document for space in spaces for document in clusters.namespace(space)]
    documents += _sites(request, settings, name, here, name)
    documents += coordinator.documents(made)
    return Rendered(documents, _notes(settings, name, elsewhere))


def _region(request: Request, settings: Config, name: str, places: Sequence[Placed]) -> Rendered:
    """What a cluster that is not the coordinator's needs, for the sites in it."""
    there = [place for place in places if place.context == request.context]
    if not there:
        known = ", ".join(dict.fromkeys(p.context for p in places if p.context is not None))
        raise ConfigError(
            f"no site is in context {request.context}: "
            + (f"name one of {known}" if known else "leave out --context")
        )
    spaces = clusters.namespaces(there)
    account = Name(name, spaces[0])
    documents = [document for space in spaces for document in clusters.namespace(space)]
    documents += clusters.account(account)
    documents += _sites(request, settings, account, there, account)
    return Rendered(documents, [])


def _sites(
    request: Request, settings: Config, name: Name, places: Sequence[Placed], account: Name
) -> list[Manifest]:
    save_s = settings.fleet.snapshot_timeout_wall_s
    return [
        *clusters.access(name, places, account),
        *clusters.federations(name, places, request.image, save_s),
    ]


def _notes(settings: Config, name: Name, elsewhere: Sequence[str]) -> list[str]:
    """What a person has to do, because it holds secrets or is in another cluster."""
    make = f"kubectl -n {name.namespace} create secret generic"
    notes = []
    if needed := needs.needed(settings):
        words = " ".join(f"--from-literal={key}=..." for key in needed)
        notes.append(f"The coordinator waits for: {make} {name.credentials} {words}")
    if possible := needs.possible(settings):
        notes.append(f"{name.credentials} may also hold {', '.join(possible)}.")
    if elsewhere:
        notes.append(
            f"The coordinator waits for: {make} {name.kubeconfig} "
            f"--from-file={KUBECONFIG_FILE}=FILE, a kubeconfig with the contexts "
            f"{', '.join(elsewhere)}"
        )
    notes += [
        f"Sites need: uncurtail deploy render ... --context {context} | kubectl --context "
        f"{context} apply -f -"
        for context in elsewhere
    ]
    return notes
