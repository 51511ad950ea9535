"""What a site's trainer speaks to: the run's own planes beside it, or the run's gate from afar."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncurtail import wiring
from uncurtail.adapters import clock
from uncurtail.adapters.blobs import BlobError, UnusableError
from uncurtail.adapters.gate_client import Gate
from uncurtail.adapters.gate_pass import PASS_FILE, Pass
from uncurtail.adapters.redis import SiteState
from uncurtail.config import Config
from uncurtail.errors import UserError
from uncurtail.lm.data import Corpus
from uncurtail.lm.manifest import Shard
from uncurtail.lm.snapshot import INDEX_FILE
from uncurtail.runfolder import RunFolder
from uncurtail.site.link import State
from uncurtail.site.worker import Blobs

FETCH_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Planes:
    """The planes of one site.

    `tell` puts a row of its record where the run can see it, and `kept` its snapshot: beside the
    run both lie there already.
    """

    state: State
    blobs: Blobs
    corpus: Corpus
    tell: Callable[[Mapping[str, Any]], None]
    kept: Callable[[Path], None]


def planes(folder: RunFolder, config: Config, site: str) -> Planes:
    """Those of a run's folder, or, in a folder that `uncurtail site join` made, the gate's."""
    endpoints = wiring.Endpoints.load(folder)
    data = Path(endpoints.data)
    leave = Pass.load(folder.private / PASS_FILE)
    if leave is None:
        state = SiteState(endpoints.redis_url, folder.run_id, site)
        return Planes(state, wiring.store(config, folder), Corpus.open(data), _here, _here)
    gate = Gate(leave)

    def fetch(shard: Shard) -> Path:
        place = data / f"fetched.{os.environ.get('RANK', '0')}"  # several ranks may fetch
        patience_s = config.fleet.orphan_after_wall_s
        fetched(lambda: gate.fetch(f"data/{shard.name}", place), patience_s)
        return place

    return Planes(gate, gate, Corpus.open(data, fetch), gate.record, lambda s: hand_in(gate, s))


def fetched(call: Callable[[], None], patience_s: float) -> None:
    """Fetch a shard, also from a gate that is away for a moment: a step waits for it.

    Raises:
        UserError: It is not there.
        BlobError: The gate stayed away; the order fails, and may be asked again.
    """
    give_up = clock.monotonic() + patience_s
    while True:
        try:
            return call()
        except UnusableError as error:
            raise UserError(f"{error}: prepare the data again where the run is") from None
        except BlobError:
            if clock.monotonic() >= give_up:
                raise
        clock.pause(FETCH_AGAIN_S)


def hand_in(gate: Gate, folder: Path) -> None:
    """Upload the snapshot in a folder, its index last.

    Raises:
        BlobError: The gate cannot be reached; the older snapshot stays in force there.
    """
    for path in sorted(folder.glob("optimizer-*.safetensors")):
        gate.keep(f"snapshot/{path.name}", path)
    gate.keep(f"snapshot/{INDEX_FILE}", folder / INDEX_FILE)


def _here(_: object) -> None:
    return
