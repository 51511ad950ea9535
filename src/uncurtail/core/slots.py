"""Where each site runs, and with what: no two sites that may run at once share a machine's part."""

from collections.abc import Iterable, Mapping

from uncurtail.core.clouds import FleetKind
from uncurtail.core.fleet import FleetSection, SiteSection


def kinds(fleet: FleetSection, sites: Mapping[str, SiteSection]) -> dict[str, FleetKind]:
    """Where each site runs."""
    return {name: site.kind or fleet.kind for name, site in sites.items()}


def cpus(text: str) -> frozenset[int]:
    """The CPUs of a list such as "0-15,32".

    Raises:
        ValueError: It is none.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f'{text!r} is no list of CPUs: write "0-15,32"')
        found.update(range(int(first), int(last if dash else first) + 1))
    if not found:
        raise ValueError(f'{text!r} is no list of CPUs: write "0-15,32"')
    return frozenset(found)


def gpus(text: str) -> list[str]:
    """The GPUs of CUDA_VISIBLE_DEVICES, as it names them: by number or UUID."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check(fleet: FleetSection, sites: Mapping[str, SiteSection]) -> None:
    """See that every site has a place of its own.

    Raises:
        ValueError: One line with the remedy.
    """
    where = kinds(fleet, sites)
    local = {name: site for name, site in sites.items() if where[name] == "processes"}
    for name, site in local.items():
        _check_slot(name, site)
    _check_apart("GPU", "cuda_devices", {n: gpus(s.cuda_devices or "") for n, s in local.items()})
    _check_apart("CPU", "cpus", {n: cpus(s.cpus) if s.cpus else () for n, s in local.items()})
    nodes: dict[str, list[str]] = {}
    for name in (name for name in sites if where[name] == "exalsius"):
        machine = sites[name].exalsius
        if machine.node_id is None and machine.offer_id is None:
            raise ValueError(
                f"sites.{name}.exalsius needs node_id (a node of the pool) or offer_id (a new "
                "node for each session)"
            )
        if machine.cluster_id is None and fleet.exalsius.cluster_id is None:
            raise ValueError(f"sites.{name} needs exalsius.cluster_id, or fleet.exalsius has one")
        nodes[name] = [machine.node_id] if machine.node_id else []
    _check_apart("node", "exalsius.node_id", nodes)


def _check_slot(name: str, site: SiteSection) -> None:
    if site.cuda_devices is not None:
        devices = gpus(site.cuda_devices)
        if len({*devices}) != len(devices):
            raise ValueError(f"sites.{name}.cuda_devices names a GPU twice")
        if devices and site.ranks > len(devices):
            raise ValueError(
                f"sites.{name}.ranks {site.ranks} are more than its GPUs: name as many in "
                "cuda_devices"
            )
    if site.cpus is not None and len(cpus(site.cpus)) < site.threads:
        raise ValueError(
            f"sites.{name}.threads {site.threads} are more than its cpus {site.cpus!r}: lower "
            "threads, or name more"
        )


def _check_apart(what: str, key: str, slots: Mapping[str, Iterable[str | int]]) -> None:
    owners: dict[str | int, str] = {}
    for name, parts in slots.items():
        for part in parts:
            other = owners.setdefault(part, name)
            if other != name:
                raise ValueError(
                    f"sites.{other} and sites.{name} share {what} {part}, and may run at once: "
                    f"give each its own {key}"
                )
