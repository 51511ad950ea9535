"""Config to the run's fleet: who starts each site, with which credentials of the environment."""

import os
from collections.abc import Callable, Collection, Mapping

from uncurtail.adapters import exalsius
from uncurtail.adapters.certificates import site_token
from uncurtail.adapters.children import SESSION, SITE
from uncurtail.adapters.exalsius import Exalsius
from uncurtail.adapters.gate_pass import Pass
from uncurtail.adapters.processes import ProcessProvisioner
from uncurtail.adapters.redis import MachineState
from uncurtail.adapters.remote import RemoteProvisioner
from uncurtail.adapters.static import SETTINGS, StaticSites
from uncurtail.config import Config, ConfigError
from uncurtail.core import slots
from uncurtail.core.clouds import FleetKind
from uncurtail.core.nodes import Session
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


def release_wall_s(config: Config) -> float:
    """How long the end of a run may wait for machines elsewhere to be gone; 0 without any."""
    return config.fleet.remote.release_wall_s if sites_of(config, "exalsius") else 0.0


def check(config: Config) -> None:
    """Say now, and not after a minute, what is wrong with the fleet; asks nobody.

    Raises:
        UserError: A package, a credential, or a CPU is missing.
    """
    if sites_of(config, "exalsius"):
        exalsius.check()
        exalsius_token()
    if sites_of(config, "static") and config.gate.address is None:
        raise ConfigError(
            'fleet.kind = "static" needs gate.address: HOST:PORT at which those machines reach '
            "this one"
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


def leftovers(config: Config, run_id: str, last: Mapping[str, int]) -> RemoteProvisioner:
    """Lets go every machine elsewhere that a run left, once it is stepped.

    A last call of the run may still come true: for so long its last sessions count as existing.
    """
    cloud = exalsius_cloud(config, run_id, last)
    started = [(s, last[s]) for s in sites_of(config, "exalsius") if last.get(s)]
    return RemoteProvisioner(
        cloud, (), started, config.fleet.remote, lambda _site, _session: {}, seed=config.seed
    )


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
    for kind in sorted({*slots.kinds(config.fleet, config.sites).values()}):
        sites = sites_of(config, kind)
        left = [key for key in living if key[0] in sites]
        environment = node_environment(config, run)
        match kind:
            case "processes":
                one: Provisioner = ProcessProvisioner(
                    run, config.sites, config.fleet.snapshot_timeout_wall_s
                )
            case "exalsius":
                cloud = exalsius_cloud(config, run.run_id, last)
                remote = RemoteProvisioner(
                    cloud, sites, left, config.fleet.remote, environment, seed=config.seed
                )
                remote.start()
                one = remote
            case "static":
                static = StaticSites(MachineState(state, run.run_id, sites), sites, online)
                remote = RemoteProvisioner(
                    static, sites, left, SETTINGS, environment, seed=config.seed
                )
                remote.start()
                one = remote
        found.update(dict.fromkeys(sites, one))
    return MixedProvisioner(found)
