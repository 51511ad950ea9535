"""Config to the run's fleet: who starts each site, with which credentials of the environment."""

import os
from collections.abc import Callable, Collection, Mapping

from uncurtail.adapters import exalsius, kubernetes_api
from uncurtail.adapters.certificates import site_token
from uncurtail.adapters.children import SESSION, SITE
from uncurtail.adapters.exalsius import Exalsius
from uncurtail.adapters.gate_pass import END_WALL_S, Pass
from uncurtail.adapters.kubernetes import Kubernetes, Place
from uncurtail.adapters.kubernetes_api import Api
from uncurtail.adapters.kubernetes_pod import PodPlace
from uncurtail.adapters.kubernetes_pool import PoolPlace
from uncurtail.adapters.processes import ProcessProvisioner
from uncurtail.adapters.redis import MachineState
from uncurtail.adapters.remote import Cloud, RemoteProvisioner
from uncurtail.adapters.static import SETTINGS, StaticSites
from uncurtail.config import Config, ConfigError
from uncurtail.core import slots
from uncurtail.core.clouds import FleetKind
from uncurtail.core.nodes import RemoteSection, Session
from uncurtail.ports import Provisioner
from uncurtail.runfolder import RunFolder
from uncurtail.sourcing import secret


class MixedProvisioner:
    """One provisioner for sites of several kinds: each site's calls go to its own."""

    def __init__(self, by_site: Mapping[str, Provisioner]) -> None:
        self._by_site = by_site
        self._all = list({id(one): one for one in by_site.values()}.values())

    @property
    def trouble(self) -> str | None:
        """What fails at any of them."""
        return "; ".join(line for one in self._all if (line := one.trouble)) or None

    def provision(self, site: str, session: int) -> None:
        """See to it that this session is being started."""
        self._by_site[site].provision(site, session)

    def release(self, site: str, session: int) -> None:
        """See to it that this session is being ended."""
        self._by_site[site].release(site, session)

    def alive(self) -> dict[str, frozenset[int]]:
        """The sessions of all kinds."""
        found: dict[str, frozenset[int]] = {}
        for one in self._all:
            for site, sessions in one.alive().items():
                found[site] = found.get(site, frozenset()) | sessions
        return found


def sites_of(config: Config, kind: FleetKind) -> list[str]:
    """The sites that run there."""
    return [
        name for name, where in slots.kinds(config.fleet, config.sites).items() if where == kind
    ]


def made_elsewhere(config: Config) -> list[str]:
    """The sites whose machines the run makes, and has to take away."""
    return [*sites_of(config, "exalsius"), *sites_of(config, "kubernetes")]


def release_wall_s(config: Config) -> float:
    """How long the end of a run may wait for machines elsewhere to be gone; 0 without any."""
    return config.fleet.remote.release_wall_s if made_elsewhere(config) else 0.0


def check(config: Config) -> None:
    """Say now, and not after a minute, what is wrong with the fleet; asks nobody.

    Raises:
        UserError: A package, a credential, or a CPU is missing.
    """
    if sites_of(config, "exalsius"):
        exalsius.check()
        exalsius_token()
    for context in contexts(config):
        kubernetes_api.settings(context)
    for kind in ("static", "kubernetes"):
        if sites_of(config, kind) and config.gate.address is None:
            raise ConfigError(
                f'fleet.kind = "{kind}" needs gate.address: HOST:PORT at which those machines '
                "reach this one"
            )
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    for name in sites_of(config, "processes"):
        asked = config.sites[name].cpus
        lacking = slots.cpus(asked) - usable if asked is not None and usable is not None else None
        if lacking:
            raise ConfigError(
                f"sites.{name}.cpus names CPU {min(lacking)}, which this machine lacks: it has "
                f"{min(usable or [0])}-{max(usable or [0])}"
            )


def exalsius_token() -> str:
    """The access token.

    Raises:
        ConfigError: It is not set, or its file cannot be read.
    """
    token = (secret(exalsius.TOKEN) or "").strip()
    if not token:
        raise ConfigError(
            f"fleet.kind = exalsius needs {exalsius.TOKEN}, or {exalsius.TOKEN}_FILE: a file with "
            "it"
        )
    return token


def exalsius_cloud(config: Config, run_id: str, last: Mapping[str, int]) -> Exalsius:
    """The cloud of a run's Exalsius sites; `last` is the last session started at each site."""
    common = config.fleet.exalsius
    machines = {
        name: config.sites[name].exalsius.model_copy(
            update={"cluster_id": config.sites[name].exalsius.cluster_id or common.cluster_id}
        )
        for name in sites_of(config, "exalsius")
    }
    return Exalsius(
        run_id,
        machines,
        last,
        url=common.url,
        token=exalsius_token,
        timeout_s=config.fleet.remote.call_timeout_wall_s,
    )


def contexts(config: Config) -> dict[str | None, list[str]]:
    """The sites of each Kubernetes cluster, by its context; None is the current one."""
    found: dict[str | None, list[str]] = {}
    for name in sites_of(config, "kubernetes"):
        context = config.sites[name].kubernetes.context or config.fleet.kubernetes.context
        found.setdefault(context, []).append(name)
    return found


def kubernetes_cloud(
    config: Config, run_id: str, context: str | None, sites: Collection[str]
) -> Kubernetes:
    """The cloud of a run's sites in one cluster."""
    timeout_s = config.fleet.remote.call_timeout_wall_s
    api = Api(kubernetes_api.settings(context), timeout_s=timeout_s, keep=False)
    places: dict[str, Place] = {}
    for name in sites:
        machine = config.sites[name].kubernetes
        namespace = machine.namespace or config.fleet.kubernetes.namespace or api.namespace
        if machine.federation is not None and machine.pool is not None:
            pool = (machine.federation, machine.pool)
            places[name] = PoolPlace(api, run_id, name, namespace, *pool)
        else:
            grace_s = END_WALL_S + config.fleet.snapshot_timeout_wall_s
            places[name] = PodPlace(
                api, run_id, name, machine, namespace=namespace, grace_s=grace_s
            )
    return Kubernetes(context, places)


def clouds(config: Config, run_id: str, last: Mapping[str, int]) -> list[tuple[Cloud, list[str]]]:
    """Every cloud whose machines the run makes, with its sites."""
    found: list[tuple[Cloud, list[str]]] = []
    if sites := sites_of(config, "exalsius"):
        found.append((exalsius_cloud(config, run_id, last), sites))
    for context, sites in contexts(config).items():
        found.append((kubernetes_cloud(config, run_id, context, sites), sites))
    return found


def leftovers(config: Config, run_id: str, last: Mapping[str, int]) -> list[RemoteProvisioner]:
    """Let go every machine elsewhere that a run left, once they are stepped.

    A last call of the run may still come true: for so long its last sessions count as existing.
    """
    return [
        RemoteProvisioner(
            cloud,
            (),
            [(site, last[site]) for site in sites if last.get(site)],
            config.fleet.remote,
            lambda _site, _session: {},
            seed=config.seed,
        )
        for cloud, sites in clouds(config, run_id, last)
    ]


def invitation(config: Config, run: RunFolder, site: str) -> dict[str, str]:
    """The environment that lets a machine in as this site; nothing of a gate without one."""
    if config.gate.address is None:
        return {SITE: site}
    authority = (run.private / "tls" / "ca.crt").read_text(encoding="ascii")
    token = site_token(run.gate_secret.read_bytes(), site)
    return {SITE: site, **Pass(config.gate.address, authority, site, token).environment()}


def node_environment(config: Config, run: RunFolder) -> Callable[[str, int], Mapping[str, str]]:
    """What a machine elsewhere is told of itself."""
    return lambda site, session: {**invitation(config, run, site), SESSION: str(session)}


def provisioner(
    config: Config,
    run: RunFolder,
    state: str,
    online: Callable[[], frozenset[str]],
    last: Mapping[str, int],
    living: Collection[Session],
) -> Provisioner:
    """Who starts each site of a run.

    Args:
        config: Which sites, where.
        run: The run folder.
        state: The URL of the state plane.
        online: The members that Flower can reach.
        last: The last session started at each site.
        living: Those that an earlier coordinator left living, by the run folder.
    """
    found: dict[str, Provisioner] = {}
    environment = node_environment(config, run)

    def remote(cloud: Cloud, sites: Collection[str], settings: RemoteSection) -> None:
        left = [key for key in living if key[0] in sites]
        one = RemoteProvisioner(cloud, sites, left, settings, environment, seed=config.seed)
        one.start()
        found.update(dict.fromkeys(sites, one))

    if sites := sites_of(config, "processes"):
        local = ProcessProvisioner(run, config.sites, config.fleet.snapshot_timeout_wall_s)
        found.update(dict.fromkeys(sites, local))
    for cloud, sites in clouds(config, run.run_id, last):
        remote(cloud, sites, config.fleet.remote)
    if sites := sites_of(config, "static"):
        remote(StaticSites(MachineState(state, run.run_id, sites), sites, online), sites, SETTINGS)
    return MixedProvisioner(found)
