"""Config to the run's energy: which source, with which credentials of the environment."""

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from uncurtail.adapters.electricitymaps import ElectricityMaps
from uncurtail.adapters.foresight import Bands, SourceForecasts
from uncurtail.adapters.livefeed import Follower, LiveFeed
from uncurtail.adapters.poller import Foresight, Poller
from uncurtail.adapters.prices import LivePrices, PriceTraces
from uncurtail.adapters.prometheus import Prometheus
from uncurtail.adapters.sources import Source
from uncurtail.adapters.traces import load_csv, regions_of
from uncurtail.adapters.vessim import VessimFeed
from uncurtail.adapters.vessim_api import VessimApi
from uncurtail.adapters.watttime import WattTime
from uncurtail.config import Config, ConfigError
from uncurtail.core import measured, pricing
from uncurtail.core.events import Event
from uncurtail.core.forecasts import Forecast
from uncurtail.core.issues import Issues, Issuing
from uncurtail.core.microgrid import Microgrid, MicrogridSection
from uncurtail.core.received import Trust, held
from uncurtail.core.signals import PLAUSIBLE, Kind, Reading, Signal, Trace
from uncurtail.core.solar import WATTS, sunshine
from uncurtail.energysection import EnergySection
from uncurtail.ports import Feed, Forecaster, Prices, Signals


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
    energy = config.energy
    poller = Poller(
        source,
        sorted(set(names.values())),
        every_wall_s=energy.poll_wall_s or source.poll_wall_s,
        stale_after_s=config.policy.stale_after_s,
        seed=config.seed,
    )
    if energy.forecast == "source":
        poller.foresee(
            Foresight(
                energy.forecast_every_s, energy.forecast_horizon_s, energy.forecast_stale_after_s
            )
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


def price_traces(config: Config) -> dict[str, Trace]:
    """Each site's price by the file that `energy.price` names; empty without one.

    Raises:
        ConfigError: The file cannot be used, or has no column for a site.
    """
    price = config.energy.price
    if price is None or price.source != "csv" or price.path is None:
        return {}
    wanted = pricing.signal(price.source)
    try:
        known = regions_of(price.path)
        columns = {n: n if n in known else region for n, region in regions(config).items()}
        found = load_csv(
            price.path,
            sorted(set(columns.values())),
            allow_gaps=price.allow_gaps,
            plausible=wanted.range,
            unit=wanted.unit,
        )
    except ValueError as error:
        raise ConfigError(f"energy.price: {error}") from None
    return {name: replace(found[column], signal=wanted) for name, column in columns.items()}


def prices(config: Config, start: float) -> Prices | None:
    """What power costs from `start` on; None where sites' own prices are all there is.

    Raises:
        ConfigError: The file cannot be used.
    """
    price = config.energy.price
    if price is None:
        return None
    if price.source == "csv":
        return PriceTraces(price_traces(config), start)
    names = regions(config)
    source = Prometheus(
        config.energy.prometheus_url or "",
        price.prometheus_query or "",
        credentials=_prometheus_credentials(),
        signal=pricing.signal(price.source),
    )
    poller = Poller(
        source,
        sorted(set(names.values())),
        every_wall_s=price.poll_wall_s,
        stale_after_s=price.stale_after_s,
        seed=config.seed,
    )
    live = LivePrices(names, poller, source.signal, start, price.stale_s)
    poller.start()
    return live


def asked_power(config: Config, start: float) -> list[Signals]:
    """The measured power of sites that Prometheus is asked for, from `start` on."""
    queries = {
        name: site.power_query
        for name, site in config.sites.items()
        if site.power_from == "prometheus" and site.power_query is not None
    }
    if not queries:
        return []
    wanted = measured.signal("prometheus")
    source = Prometheus(
        config.energy.prometheus_url or "",
        queries,
        credentials=_prometheus_credentials(),
        signal=wanted,
    )
    poller = Poller(
        source,
        sorted(queries),
        every_wall_s=source.poll_wall_s,
        stale_after_s=config.fleet.power_stale_after_wall_s,
        seed=config.seed,
    )
    follower = Follower({name: name for name in queries}, poller, wanted, start)
    poller.start()
    return [follower]


def live_forecaster(
    config: Config,
    feed: LiveFeed,
    recorded: Sequence[Reading],
    start: float,
    record: Callable[[Forecast, float], None],
) -> Forecaster | None:
    """What a live run is told of the time to come: by its source, or by its own readings so far.

    `recorded` are the readings of earlier coordinators, see `recalled`; `record` keeps what the
    source said. Issues are counted from `start`.
    """
    energy, policy = config.energy, config.policy
    match energy.forecast:
        case "none":
            return None
        case "source":
            trust = Trust(
                energy.forecast_stale_after_s, energy.forecast_horizon_s, energy.forecast_edge_sd_s
            )
            bands = Bands(policy.enter_below_g_per_kwh, policy.leave_above_g_per_kwh)
            return SourceForecasts(regions(config), feed, trust, bands, record)
        case "persistence" | "climatology":
            earlier: dict[str, list[Reading]] = {}
            for reading in recorded:
                earlier.setdefault(reading.site, []).append(reading)

            def heard(site: str) -> Trace:
                rows = [*earlier.get(site, []), *feed.told(site)]
                return held(rows, policy.stale_after_s, rows[0].t if rows else start)

            issuing = Issuing(energy.forecast, energy.forecast_horizon_s, energy.forecast_every_s)
            return Issues(issuing, heard, start)
        case "perfect" | "noisy":
            raise AssertionError("refused by EnergySection")


def recalled(
    readings: Sequence[Reading], events: Sequence[Event], metered_until: float, wall_s: float
) -> list[Reading]:
    """All readings of earlier coordinators, at the times that they have for the one that starts.

    Simulated time stood still while no coordinator ran, the grid did not: a reading from before is
    older by that, and keeps its hour of the day.
    """
    if not events:
        return list(readings)
    times = [event.t for event in events]
    lag_s = wall_s - max(metered_until, times[-1])
    moved: list[Reading] = []
    for reading in readings:
        by = events[max(bisect_right(times, reading.t) - 1, 0)]
        shift_s = min(0.0, (by.wall_s - by.t) - lag_s)
        published = None if reading.published is None else reading.published + shift_s
        moved.append(replace(reading, t=reading.t + shift_s, published=published))
    return moved


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
