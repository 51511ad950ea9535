"""From a run folder to a running session: what `uncurtail site` builds before it begins."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from uncurtail import wiring
from uncurtail.adapters.nvml import Nvml
from uncurtail.adapters.rapl import Rapl
from uncurtail.adapters.redis import SitePower, SiteState
from uncurtail.adapters.wattmeter import Reporter, WattError
from uncurtail.core.fleet import SiteSection
from uncurtail.runfolder import RunFolder

log = logging.getLogger("uncurtail.site")


def lead_session(path: Path, site: str, session: int) -> int:
    """Head a session; returns its exit code."""
    from uncurtail.site.leader import lead

    folder = RunFolder(path)
    section = wiring.read_config(folder).sites[site]
    endpoints = wiring.Endpoints.load(folder)
    power = SitePower(endpoints.redis_url, folder.run_id, site, session)
    reporter = measuring(section, power.say)
    if reporter is not None:
        reporter.start()
    flower = wiring.flower(folder, endpoints)
    return lead(folder, flower, site, session, section.ranks)


def measuring(section: SiteSection, say: Callable[[float, str], object]) -> Reporter | None:
    """What measures this site's power here; None where nothing does, and the model counts."""
    try:
        if section.power_from == "nvml":
            return Reporter(Nvml(section.cuda_devices), say)
        if section.power_from == "rapl":
            return Reporter(Rapl(), say)
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

    from uncurtail.lm.data import Corpus
    from uncurtail.lm.ranks import Ranks
    from uncurtail.lm.trainer import Trainer
    from uncurtail.site.link import Link
    from uncurtail.site.worker import Worker, serve

    config = wiring.read_config(folder)
    endpoints = wiring.Endpoints.load(folder)
    section = config.sites[site]
    ranks = Ranks.join("cpu" if section.cuda_devices is None else "cuda")
    threads = max(1, section.threads // ranks.size)
    own_train = config.train.model_copy(update={"threads": threads})
    corpus = Corpus.open(Path(endpoints.data))
    trainer = Trainer(config.model, own_train, corpus, config.seed, ranks)
    if not ranks.first:
        trainer.follow()
        ranks.end()
        return
    trainer.load_snapshot(home / "snapshot")
    link = Link(SiteState(endpoints.redis_url, folder.run_id, site), site, session)
    worker = Worker(
        config=config,
        folder=home,
        site=site,
        session=session,
        link=link,
        blobs=wiring.store(config, folder),
        trainer=trainer,
    )
    serve(worker, socket)
    trainer.dismiss()
    ranks.end()
