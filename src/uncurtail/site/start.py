"""From a run folder to a running session: what `uncurtail site` builds before it begins."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from uncurtail import wiring
from uncurtail.adapters.gate_pass import PASS_FILE, Pass
from uncurtail.adapters.gpu_limits import RECORD, GpuLimits, NvmlGpus
from uncurtail.adapters.nvml import Nvml
from uncurtail.adapters.rapl import Rapl
from uncurtail.adapters.redis import SitePower
from uncurtail.adapters.wattmeter import Reporter, WattError, Wattmeter
from uncurtail.core.fleet import SiteSection
from uncurtail.runfolder import RunFolder

log = logging.getLogger("uncurtail.site")


def lead_session(path: Path, site: str, session: int) -> int:
    """Head a session; returns its exit code."""
    from uncurtail.site.leader import lead

    folder = RunFolder(path)
    config = wiring.read_config(folder)
    section = config.sites[site]
    endpoints = wiring.Endpoints.load(folder)
    meter = wattmeter(section)
    if meter is not None:
        Reporter(meter, _telling(folder, endpoints, site, session)).start()
    flower = wiring.flower(folder, endpoints)
    patience_s = config.fleet.snapshot_timeout_wall_s
    return lead(folder, flower, site, session, ranks=section.ranks, patience_s=patience_s)


def _telling(
    folder: RunFolder, endpoints: wiring.Endpoints, site: str, session: int
) -> Callable[[float, str], bool]:
    """Where a measurement goes: to the state plane, or from another machine to the gate."""
    leave = Pass.load(folder.private / PASS_FILE)
    if leave is None:
        return SitePower(endpoints.redis_url, folder.run_id, site, session).say
    from uncurtail.adapters.gate_client import Gate  # an HTTP client: for machines elsewhere

    return partial(Gate(leave).measured, session)


def wattmeter(section: SiteSection) -> Wattmeter | None:
    """What measures this site's power here; None where nothing does, and the model counts."""
    try:
        if section.power_from == "nvml":
            return Nvml(section.cuda_devices)
        if section.power_from == "rapl":
            return Rapl()
    except WattError as error:
        log.warning("power is not measured: %s", error)
    return None


def train_session(path: Path, site: str, session: int, socket: Path) -> None:
    """Train for a session until the coordinator is silent for too long, or we are ended.

    One of several ranks only follows the first, which alone speaks to the socket, to the state
    plane and to the store.
    """
    folder = RunFolder(path)
    home = folder.site(site)
    # kept between sessions; the variable must be there before torch compiles anything
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((home / "compiled").resolve()))

    from uncurtail.lm.ranks import Ranks
    from uncurtail.lm.trainer import Trainer
    from uncurtail.site.keeper import SnapshotKeeper
    from uncurtail.site.link import Link
    from uncurtail.site.planes import planes
    from uncurtail.site.throttle import Throttle
    from uncurtail.site.worker import Worker, serve

    config = wiring.read_config(folder)
    own = planes(folder, config, site)
    section = config.sites[site]
    ranks = Ranks.join("cpu" if section.cuda_devices is None else "cuda")
    threads = max(1, section.threads // ranks.size)
    own_train = config.train.model_copy(update={"threads": threads})
    trainer = Trainer(config.model, own_train, own.corpus, config.seed, ranks)
    if not ranks.first:
        trainer.follow()
        ranks.end()
        return
    keeper = SnapshotKeeper(home / "snapshot", own.kept)
    trainer.load_snapshot(home / "snapshot")
    link = Link(own.state, site, session)
    worker = Worker(
        config=config,
        folder=home,
        site=site,
        session=session,
        link=link,
        blobs=own.blobs,
        tell=own.tell,
        trainer=trainer,
        throttle=Throttle(section.capped_speed, _gpu_limits(section, ranks.size, home)),
        keeper=keeper,
    )
    serve(worker, socket)
    keeper.finish(config.fleet.snapshot_timeout_wall_s)
    trainer.dismiss()
    ranks.end()


def _gpu_limits(section: SiteSection, gpus: int, home: Path) -> GpuLimits | None:
    """How the GPUs of this session can be capped: its ranks' own; None where pauses do it.

    CUDA and the driver count GPUs in orders of their own: they agree on UUIDs.
    """
    if section.capped_gpu_limit_w is None:
        return None
    import torch

    uuids = [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(gpus)]
    return GpuLimits(NvmlGpus(), uuids, section.capped_gpu_limit_w, home / RECORD)
