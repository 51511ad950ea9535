"""What a run needs where it is going to be: which secrets, and what cannot come along."""

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from uncurtail import provisioning
from uncurtail.config import Config, ConfigError
from uncurtail.core.section import place
from uncurtail.deploy.coordinator import Gate, ServiceType
from uncurtail.deploy.parts import RUNS, Name
from uncurtail.supervisor import DRAIN_S

# After a drain: the report, which `uncurtail report` can write again, and the ends of processes.
CONCLUDE_S = 60.0

_SOURCES: Mapping[str, tuple[str, ...]] = {
    "watttime": ("WATTTIME_USERNAME", "WATTTIME_PASSWORD"),
    "electricitymaps": ("ELECTRICITYMAPS_TOKEN",),
}
_STORES: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}

# Keys of files, besides all that end in "path".
_FILES = frozenset({"data.tokenizer", "data.folder", "flower.superlink_ca"})


def needed(config: Config) -> tuple[str, ...]:
    """The variables without which the run does not start."""
    names = [*_SOURCES.get(config.energy.source, ())]
    if config.tracking.wandb == "online":
        names.append("WANDB_API_KEY")
    if provisioning.sites_of(config, "exalsius"):
        names.append("UNCURTAIL_EXALSIUS_TOKEN")
    return tuple(names)


def possible(config: Config) -> tuple[str, ...]:
    """Those that it can do without: where a cluster's identity, or nobody, asks for more."""
    names: list[str] = ["UNCURTAIL_REDIS_URL"]
    if config.energy.prometheus_url is not None:
        names += [f"UNCURTAIL_PROMETHEUS_{part}" for part in ("TOKEN", "USERNAME", "PASSWORD")]
    if config.flower.superlink is not None:
        names.append("UNCURTAIL_SUPEREXEC_SECRET")
    if config.data.source == "fineweb-edu":
        names.append("HF_TOKEN")
    return (*names, *_STORES.get(urlsplit(config.store.url or "").scheme, ()))


def grace_s(config: Config) -> int:
    """How long the pod may take to end: a drain with snapshots and machines, and the report."""
    drain_s = DRAIN_S + provisioning.release_wall_s(config)
    return math.ceil(drain_s + config.fleet.snapshot_timeout_wall_s + CONCLUDE_S)


def gate(config: Config, name: Name, wanted: ServiceType | None, *, outside: bool) -> Gate | None:
    """The gate's Service; None where no site is elsewhere and no gate is asked for.

    Args:
        config: The experiment.
        name: What the deployment is called.
        wanted: The type of the Service; None for the least that suffices.
        outside: Whether some site is not in the coordinator's own cluster.

    Raises:
        ConfigError: Sites could not find the gate.
    """
    remote = [
        site for site in config.sites if site not in provisioning.sites_of(config, "processes")
    ]
    own = f"{name.gate}.{name.namespace}.svc"
    address = config.gate.address
    if address is None:
        if not remote:
            return None
        remedy = "HOST:PORT, as their clusters reach this one" if outside else f"{own}:8443"
        raise ConfigError(
            f"sites {', '.join(remote)} need gate.address: set it to {remedy} "
            "(--set gate.address=...)"
        )
    host, port = place(address)
    inside = host == own or host.endswith((".svc", ".svc.cluster.local")) or "." not in host
    if inside and outside:
        raise ConfigError(
            f"gate.address = {address} has a meaning in this cluster alone, and sites are "
            "elsewhere: name the host of a load balancer"
        )
    if inside and host not in (own, f"{own}.cluster.local"):
        raise ConfigError(f"gate.address = {address} is not the Service here: set {own}:{port}")
    return Gate(port, wanted or ("LoadBalancer" if outside else "ClusterIP"))


def check(config: Config) -> None:
    """Say what cannot be carried into a pod.

    Raises:
        ConfigError: One line a problem, each with the remedy.
    """
    problems = [*_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(config: Config) -> Iterator[str]:
    if config.name.endswith("-"):
        yield f"name = {config.name!r} ends in '-', and Kubernetes' names may not: choose another"
    scheme = urlsplit(config.store.url or "").scheme
    if config.store.url is not None and scheme in ("", "file", "memory"):
        yield (
            f"store.url = {config.store.url!r} is a place of one machine: leave it out (the run "
            "folder is on the claim), or name s3://BUCKET/PREFIX"
        )
    for key, path in _files(config):
        if not PurePosixPath(path).is_relative_to(RUNS):
            yield (
                f"{key} = {path!r} is a file of this machine: copy it to the claim (kubectl cp) "
                f"and name it {RUNS}/..."
            )
    for key, url in _addresses(config):
        if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1"):
            yield f"{key} = {url!r} is the pod itself: name the Service that it is there"
    for site in provisioning.sites_of(config, "processes"):
        if config.sites[site].cuda_devices or config.sites[site].cpus:
            yield (
                f"sites.{site} would be a process in the coordinator's pod, which has no GPUs and "
                f'no CPUs of its own: set sites.{site}.kind = "kubernetes"'
            )


def _files(config: Config) -> Iterator[tuple[str, str]]:
    """Every file or folder of this machine that the experiment names, by its key."""
    for key, value in _leaves(config.model_dump(mode="json")):
        last = key.rpartition(".")[2]
        if value and (last.endswith("path") or key in _FILES or key.startswith("data.files.")):
            yield key, value


def _addresses(config: Config) -> Iterator[tuple[str, str]]:
    for key, value in _leaves(config.model_dump(mode="json")):
        if key.endswith("url"):
            yield key, value
        elif key == "flower.superlink":
            yield key, f"//{value}"


def _leaves(inside: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested tables, with its key."""
    if isinstance(inside, str):
        yield key, inside
    elif isinstance(inside, dict | list):
        items = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for name, each in items:
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
