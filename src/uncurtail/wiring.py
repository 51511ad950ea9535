"""Config to adapters to Loop: the only file that picks implementations."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from uncurtail.adapters.blobs import ObjectStore, UnusableError
from uncurtail.adapters.flower_commands import Flower
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.adapters.redis import CoordinatorState
from uncurtail.adapters.sitewatts import SiteWatts
from uncurtail.adapters.traces import load_csv
from uncurtail.adapters.vessim_own import VessimOwnPower
from uncurtail.config import Config, ConfigError, parse
from uncurtail.core import commit as commits
from uncurtail.core import fleet, grids
from uncurtail.core.commit import Commit
from uncurtail.core.events import (
    CoordinatorStarted,
    Evaluated,
    Event,
    RoundOpened,
    WindowCleared,
    WindowClosed,
    WindowDimmed,
    WindowOpened,
    unix,
)
from uncurtail.core.forecasts import Experience, Noise
from uncurtail.core.issues import Issues, Issuing
from uncurtail.core.leases import FreeSteps
from uncurtail.core.ledger import Ledger
from uncurtail.core.microgrid import Microgrid
from uncurtail.core.signals import Kind, Reading, Signal, Trace
from uncurtail.instruments import OwnSupply
from uncurtail.loop import Loop, Ports
from uncurtail.past import Past
from uncurtail.ports import Forecaster, Post
from uncurtail.runfolder import Journal, RunFolder
from uncurtail.sourcing import (
    aged,
    asked_power,
    feed,
    live_forecaster,
    live_source,
    price_traces,
    prices,
    recalled,
)
from uncurtail.sourcing import microgrids as built_microgrids
from uncurtail.sourcing import secret as secret  # its readers find it here

REDIS_URL = "UNCURTAIL_REDIS_URL"
# How far beyond the run a synthetic grid reaches: readings for late drains and for baselines.
BEYOND_S = 2 * 86400.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a run's planes are; private/endpoints.json, for this user only."""

    flower_port: int
    redis_url: str
    data: str
    flower_host: str = "127.0.0.1"

    def save(self, folder: RunFolder) -> None:
        """Write, readable by this user alone."""
        path = folder.private / "endpoints.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: RunFolder) -> "Endpoints":
        """Read what the supervisor wrote."""
        path = folder.private / "endpoints.json"
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def open_run(path: Path) -> RunFolder:
    """The folder of a run that somebody names.

    Raises:
        ConfigError: It is none.
    """
    folder = RunFolder(path)
    if not folder.resolved.is_file():
        raise ConfigError(f"{path} is no run folder: name one below runs/")
    return folder


def read_config(folder: RunFolder) -> Config:
    """The resolved config of a run."""
    text = folder.resolved.read_text(encoding="utf-8")
    return parse(json.loads(text), str(folder.resolved))


def flower(folder: RunFolder, endpoints: Endpoints) -> Flower:
    """The run's own SuperLink, as it is reached from here."""
    return Flower(folder.private, endpoints.flower_port, endpoints.flower_host)


def store(config: Config, folder: RunFolder) -> ObjectStore:
    """The payload plane."""
    return ObjectStore(config.store.url, folder.path)


def check_energy(config: Config, start: float) -> None:
    """Say now, and not after a minute, what is wrong with the energy source; asks nobody.

    Raises:
        ConfigError: A trace cannot be used, or a credential is missing.
    """
    microgrids(config, start)
    if config.energy.live:
        live_source(config.energy)
    else:
        traces(config, start)
    price_traces(config)


def traces(config: Config, start: float) -> dict[str, Trace]:
    """Each site's carbon intensity.

    Raises:
        ConfigError: The trace cannot be used, or the source is live and so has none.
    """
    kind = Kind(config.energy.kind) if config.energy.kind else Kind.MARGINAL
    signal = Signal(kind, source=config.energy.source)
    found = _traces(config, start)
    return {name: replace(trace, signal=signal) for name, trace in found.items()}


def _traces(config: Config, start: float) -> dict[str, Trace]:
    if config.energy.live:
        raise ConfigError(
            f"energy.source {config.energy.source!r} is live, and this needs a trace: get one with "
            "uncurtail energy fetch, then --set energy.source=csv --set energy.path=FILE"
        )
    if config.energy.source == "csv":
        assert config.energy.path is not None
        regions = {name: site.region or "" for name, site in config.sites.items()}
        try:
            columns = load_csv(
                config.energy.path,
                sorted(set(regions.values())),
                allow_gaps=config.energy.allow_gaps,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return {name: columns[region] for name, region in regions.items()}
    return {
        name: grids.synthetic(
            site.preset or "",
            seed=config.energy.seed if site.seed is None else site.seed,
            start=start,
            duration_s=_made_up_s(config),
            utc_offset_h=site.utc_offset_h,
        )
        for name, site in config.sites.items()
    }


def _made_up_s(config: Config) -> float:
    """How long made-up weather reaches."""
    return (config.run.duration_s or 366 * 86400.0) + BEYOND_S


def microgrids(config: Config, start: float) -> dict[str, Microgrid]:
    """What sites have behind their grid connections; sites with nothing are left out.

    Raises:
        ConfigError: A file of solar power cannot be used, or says nothing of the start.
    """
    return built_microgrids(config, start, _made_up_s(config))


def own_supply(config: Config, before: Past) -> OwnSupply | None:
    """The sites' own power, charged as an earlier coordinator recorded it; None without any."""
    found = microgrids(config, before.began)
    if not found:
        return None
    return OwnSupply(found, VessimOwnPower(found, before.metered_until, before.soc), config.policy)


def forecaster(config: Config, known: Mapping[str, Trace], start: float) -> Issues | None:
    """What forecasts are made from traces that are known; None when there are none."""
    energy = config.energy
    if energy.forecast == "none" or energy.forecast == "source":
        return None
    noise = Noise(seed=energy.seed, clean_below=config.policy.enter_below_g_per_kwh)
    issuing = Issuing(energy.forecast, energy.forecast_horizon_s, energy.forecast_every_s, noise)
    return Issues(issuing, known.__getitem__, start)


def start_time(config: Config, wall_s: float) -> float:
    """Simulated start of a run."""
    return wall_s if config.clock.start == "now" else unix(config.clock.start)


def first_commit(
    config: Config, folder: RunFolder, blobs: ObjectStore, start: float, steps_per_epoch: int
) -> Commit:
    """Write version 0, the untrained model, unless it is there; the newest usable commit."""
    found = newest_commit(folder, blobs)
    if found is not None:
        return found
    from uncurtail.lm.checkpoint import encode_weights
    from uncurtail.lm.trainer import initial_weights

    if steps_per_epoch < 1:
        raise ConfigError(
            "the corpus is smaller than one step: lower train.batch_sequences or "
            "model.sequence_length, or prepare more data"
        )
    model = blobs.put_hashed(encode_weights(initial_weights(config.model, config.seed)))
    commit = Commit(
        run=folder.run_id,
        version=0,
        epoch=0,
        round=0,
        parent_sha256=None,
        t=start,
        wall_s=0.0,
        model=model,
        outer=None,
        tokens=0,
        free=FreeSteps(steps_per_epoch),
    )
    blobs.put_new(commits.key(0), commit.encode())
    return commit


def newest_commit(folder: RunFolder, blobs: ObjectStore) -> Commit | None:
    """The newest commit whose objects verify; None before the first.

    Newer ones that cannot be used are set aside: their place is needed for the next commit.

    Raises:
        BlobError: The store cannot be reached. Nothing is set aside for that.
    """
    for name in reversed(blobs.keys("commits")):
        try:
            commit = Commit.decode(blobs.get(name))
            for key in (commit.model, commit.outer):
                if key is not None:
                    blobs.get(key)
        except (UnusableError, ValueError):
            blobs.set_aside(name)
            continue
        return commit
    return None


def past(config: Config, folder: RunFolder, head: Commit, start: float) -> Past:
    """What an earlier coordinator left behind."""
    events = folder.read_events()
    power = [row.segment for row in folder.read_power()]
    clean_below = config.policy.enter_below_g_per_kwh
    began = events[0].t if events else start
    return Past(
        head=head,
        epoch=1 + max((e.epoch for e in events if isinstance(e, CoordinatorStarted)), default=0),
        began=began,
        metered_until=max((segment.end for segment in power), default=start),
        last_round=max((e.round for e in events if isinstance(e, RoundOpened)), default=0),
        evaluated=frozenset(e.version for e in events if isinstance(e, Evaluated)),
        states=fleet.replay(config.sites, events),
        windows=_windows(config.sites, events),
        window_since={e.site: e.t for e in events if isinstance(e, WindowOpened | WindowClosed)},
        experience=_experience(config.sites, events),
        full_windows=_full_windows(config, events),
        ledger=Ledger.from_segments(power, clean_below),
        soc={segment.site: segment.flow.soc for segment in power if segment.flow is not None},
    )


def last_readings(folder: RunFolder) -> dict[str, Reading]:
    """The newest reading of each site in the run folder."""
    return {reading.site: reading for reading in folder.read_readings()}


def last_prices(folder: RunFolder) -> dict[str, Reading]:
    """The newest price of each site in the run folder."""
    return {reading.site: reading for reading in folder.read_prices()}


def last_watts(folder: RunFolder) -> dict[str, Reading]:
    """The newest measured power of each site in the run folder."""
    return {reading.site: reading for reading in folder.read_watts()}


def build(config: Config, folder: RunFolder, post: Post, wall_s: float) -> Loop:
    """The loop of a run, fresh or resumed, over the real world."""
    from uncurtail.lm.data import Corpus
    from uncurtail.merging import UpdateMerger
    from uncurtail.provisioning import provisioner  # its clouds: for the coordinator alone

    endpoints = Endpoints.load(folder)
    start = start_time(config, wall_s)
    blobs = store(config, folder)
    blobs.copy_missing("commits")
    corpus = Corpus.open(Path(endpoints.data))
    batch, length = config.train.batch_sequences, config.model.sequence_length
    head = first_commit(config, folder, blobs, start, corpus.steps_per_epoch(length, batch))
    before, events = past(config, folder, head, start), folder.read_events()
    known = {} if config.energy.live else traces(config, before.began)
    energy = feed(config, known, before.metered_until)
    record = Journal(folder)
    foresight: Forecaster | None
    if isinstance(energy, LiveFeed):
        recorded = recalled(folder.read_readings(), events, before.metered_until, wall_s)
        foresight = live_forecaster(config, energy, recorded, before.began, record.forecast)
    else:
        foresight = forecaster(config, known, before.began)
    state = CoordinatorState(endpoints.redis_url, folder.run_id, list(config.sites))
    ports = Ports(
        feed=energy,
        provisioner=provisioner(
            config,
            folder,
            endpoints.redis_url,
            post.online,
            {name: state.session for name, state in before.states.items()},
            fleet.living(before.states),
        ),
        post=post,
        state=state,
        merger=UpdateMerger(blobs, config.outer),
        commits=blobs,
        record=record,
        forecaster=foresight,
        prices=prices(config, before.metered_until),
        power=[SiteWatts(state), *asked_power(config, before.metered_until)],
        own=own_supply(config, before),
    )
    loop = Loop(config, folder.run_id, ports, before, batch * length)
    heard, paid = last_readings(folder), last_prices(folder)
    watts = aged(last_watts(folder), events, before.metered_until, wall_s)
    if config.energy.live:
        heard = aged(heard, events, before.metered_until, wall_s)
    if config.energy.price is not None and config.energy.price.source != "csv":
        paid = aged(paid, events, before.metered_until, wall_s)
    if heard:
        loop.meter.resume(heard, paid, watts)
    else:
        loop.meter.begin()
    return loop


def _experience(sites: Iterable[str], events: Iterable[Event]) -> dict[str, Experience]:
    """How long each site's windows lasted; one that ended in unknown power says nothing."""
    found = {site: Experience() for site in sites}
    opened: dict[str, float] = {}
    for event in events:
        if isinstance(event, WindowOpened):
            opened[event.site] = event.t
        elif isinstance(event, WindowClosed) and event.site in found:
            since = opened.pop(event.site, None)
            if since is not None and event.intensity_g_per_kwh is not None:
                found[event.site].add(event.t - since)
    return found


def _full_windows(config: Config, events: Iterable[Event]) -> dict[str, bool]:
    """Which sites' windows were open for full power; one may have opened dim, or become it."""
    full = dict.fromkeys(config.sites, False)
    for event in events:
        match event:
            case WindowOpened(site=site, intensity_g_per_kwh=value):
                full[site] = value < config.policy.enter_below_g_per_kwh
            case WindowCleared(site=site):
                full[site] = True
            case WindowDimmed(site=site) | WindowClosed(site=site):
                full[site] = False
            case _:
                pass
    return full


def _windows(sites: Iterable[str], events: Iterable[Event]) -> dict[str, bool]:
    windows = dict.fromkeys(sites, False)
    for event in events:
        if isinstance(event, WindowOpened | WindowClosed) and event.site in windows:
            windows[event.site] = isinstance(event, WindowOpened)
    return windows
