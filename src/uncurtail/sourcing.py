"""Config to the run's energy: which source, with which credentials of the environment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from uncurtail.adapters.electricitymaps import ElectricityMaps
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.adapters.poller import Poller
from uncurtail.adapters.prometheus import Prometheus
from uncurtail.adapters.sources import Source
from uncurtail.adapters.traces import load_csv
from uncurtail.adapters.vessim import VessimFeed
from uncurtail.adapters.vessim_api import VessimApi
from uncurtail.adapters.watttime import WattTime
from uncurtail.config import Config, ConfigError, EnergySection
from uncurtail.core.events import Event
from uncurtail.core.microgrid import Microgrid, MicrogridSection
from uncurtail.core.signals import PLAUSIBLE, Kind, Reading, Signal, Trace
from uncurtail.core.solar import WATTS, sunshine
from uncurtail.ports import Feed


def secret(name: str) -> str | None:
    """A secret from the environment: NAME, or the file that NAME_FILE names.

    Raises:
        ConfigError: The file cannot be read.
    """
    if name in os.environ:
        return os.environ[name]
    path = os.environ.get(f"{name}_FILE")
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{name}_FILE: {path}: {error.strerror}: name a file") from None


def regions(config: Config) -> dict[str, str]:
    """Each site's name at the energy source: a microgrid of Vessim may be named as the site."""
    return {name: site.region or name for name, site in config.sites.items()}


def needed_secret(name: str, source: str) -> str:
    """A secret that a source cannot do without.

    Raises:
        ConfigError: It is not set, or its file cannot be read.
    """
    value = (secret(name) or "").strip()
    if not value:
        raise ConfigError(f"energy.source {source!r} needs {name}, or {name}_FILE: a file with it")
    return value


def live_source(energy: EnergySection) -> Source:
    """The service that the section names, with the credentials of the environment.

    Raises:
        ConfigError: A credential is missing, or the source is none of the live ones.
    """
    kind = Kind(energy.kind) if energy.kind else Kind.MARGINAL
    signal = Signal(kind, source=energy.source)
    if energy.source == "watttime":
        username, password = (
            needed_secret(name, energy.source)
            for name in ("WATTTIME_USERNAME", "WATTTIME_PASSWORD")
        )
        return WattTime(username, password, kind=kind, url=energy.watttime_url)
    if energy.source == "electricitymaps":
        token = needed_secret("ELECTRICITYMAPS_TOKEN", energy.source)
        return ElectricityMaps(token, url=energy.electricitymaps_url)
    if energy.source == "prometheus":
        query = energy.prometheus_query or ""
        credentials = _prometheus_credentials()
        return Prometheus(
            energy.prometheus_url or "", query, credentials=credentials, signal=signal
        )
    if energy.source == "vessim":
        return VessimApi(energy.vessim_url or "", energy.vessim_signal, signal=signal)
    raise ConfigError(
        f"energy.source {energy.source!r} asks nobody: name watttime, electricitymaps, prometheus "
        "or vessim"
    )


def _prometheus_credentials() -> str | tuple[str, str] | None:
    token, username, password = (
        secret(f"UNCURTAIL_PROMETHEUS_{name}") for name in ("TOKEN", "USERNAME", "PASSWORD")
    )
    return token or ((username, password) if username and password else None)


def feed(config: Config, known: Mapping[str, Trace], drawn_until: float) -> Feed:
    """The run's energy from `drawn_until` on: the traces that are known, or a live source.

    A live source is asked from now on.

    Raises:
        ConfigError: A credential of it is missing.
    """
    if not config.energy.live:
        return VessimFeed(known, drawn_until)
    source, names = live_source(config.energy), regions(config)
    poller = Poller(
        source,
        sorted(set(names.values())),
        every_wall_s=config.energy.poll_wall_s or source.poll_wall_s,
        stale_after_s=config.policy.stale_after_s,
        seed=config.seed,
    )
    live = LiveFeed(names, poller, source.signal, drawn_until)
    poller.start()
    return live


def microgrids(config: Config, start: float, duration_s: float) -> dict[str, Microgrid]:
    """What sites have behind their grid connections; sites with nothing are left out.

    Raises:
        ConfigError: A file of solar power cannot be used, or says nothing of the start.
    """
    return {
        name: Microgrid(site.microgrid, _sun(config, name, site.microgrid, (start, duration_s)))
        for name, site in config.sites.items()
        if site.microgrid is not None
    }


def _sun(
    config: Config, name: str, section: MicrogridSection, span: tuple[float, float]
) -> Trace | None:
    start, duration_s = span
    site = config.sites[name]
    if section.solar_path is None:
        if section.solar_peak_w == 0.0:
            return None
        return sunshine(
            section.solar_peak_w,
            seed=config.energy.seed if section.solar_seed is None else section.solar_seed,
            start=start,
            duration_s=duration_s,
            latitude=section.solar_latitude,
            utc_offset_h=site.utc_offset_h,
        )
    column = section.solar_column or ""
    most_w = section.solar_peak_w or PLAUSIBLE[Kind.POWER][1]
    try:
        found = load_csv(
            section.solar_path,
            [column],
            allow_gaps=config.energy.allow_gaps,
            plausible=(0.0, most_w),
            unit="W",
        )[column]
    except ValueError as error:
        raise ConfigError(f"sites.{name}.microgrid: {error}") from None
    if found.at(start) is None:
        raise ConfigError(
            f"sites.{name}.microgrid: {section.solar_path} says nothing of the run's start: set "
            "clock.start to a time that it covers"
        )
    return replace(found, signal=replace(WATTS, source="csv"))


def aged(
    readings: Mapping[str, Reading], events: Sequence[Event], metered_until: float, wall_s: float
) -> dict[str, Reading]:
    """An earlier coordinator's readings, older by the time for which no coordinator ran.

    Simulated time stood still meanwhile, the grid did not: what was fresh may be stale by now.
    """
    if not events:
        return dict(readings)
    last = events[-1]
    lag_s = wall_s - max(metered_until, last.t)
    stood_s = max(0.0, lag_s - (last.wall_s - last.t))
    return {
        site: replace(reading, published=reading.as_of - stood_s)
        for site, reading in readings.items()
    }
