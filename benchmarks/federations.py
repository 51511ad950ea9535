"""500 Federations: what the operator asks the API server for, and how long a look at all takes.

    python benchmarks/federations.py [--federations 500]

Against the API server of the tests, which is Python and shares our core, so what has calls in it
is an upper bound. Its controllers are left out, as they look at everything at every change:
StatefulSets have no pods here. It needs the extras `kubernetes` and `test`.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightkube import KubeConfig
from tests.cluster.clients import MERGE, Rest
from tests.cluster.cluster import Cluster
from tests.cluster.operators import FEDERATIONS, POOLS, federation, install

from uncurtail.adapters.kubernetes_api import Api, Stream
from uncurtail.operating.kinds import CHILDREN, FEDERATION, POD, SELECTOR, Key
from uncurtail.operating.measures import Measures
from uncurtail.operating.mirror import Mirror
from uncurtail.operating.worker import Worker

READS = ("GET", "WATCH")


class Operator:
    """The operator's worker over a mirror that is filled by lists, one by one."""

    def __init__(self, cluster: Cluster) -> None:
        config = KubeConfig.from_file(cluster.kubeconfig()).get()
        self.mirror, self.calls = Mirror(), {"reads": 0, "writes": 0}
        self.api = Api(config, timeout_s=60.0, answered=self._count)
        self.worker = Worker(self.api, self.mirror, Measures(self.mirror), lambda: True)
        self.config = config

    def _count(self, method: str, status: str) -> None:
        self.calls["reads" if method in READS else "writes"] += 1

    async def look(self) -> None:
        """Fill the mirror as the reflectors do."""
        stream = Stream(self.config, timeout_s=60.0)
        for kind in (FEDERATION, *CHILDREN, POD):
            selector = "" if kind is FEDERATION else SELECTOR
            since = self.mirror.mark()
            things, _ = await stream.list(kind.path(None), selector)
            self.mirror.replace(kind.name, things, since)
        await stream.close()

    def reconcile(self, keys: list[Key]) -> float:
        self.calls = {"reads": 0, "writes": 0}
        began = time.perf_counter()
        for key in keys:
            self.worker.work(key)
        return time.perf_counter() - began

    def told(self, what: str, took_s: float) -> None:
        calls = f"{self.calls['writes']} writes, {self.calls['reads']} reads"
        print(f"{what:<58} {took_s:8.2f} s   {calls}")


async def measure(count: int, cluster: Cluster) -> None:
    operator = Operator(cluster)
    with Rest.of(cluster) as admin:
        install(admin)
        for number in range(count):
            admin.done(admin.post(FEDERATIONS, federation(name=f"f{number}")))
        await operator.look()
        keys = sorted(operator.mirror.federations())
        operator.told(
            f"{count} new Federations, made one after the other", operator.reconcile(keys)
        )
        while True:  # until statuses say that all is done
            await operator.look()
            took_s = operator.reconcile(keys)
            if not operator.calls["writes"]:
                break
        operator.told(f"a look at {count} that are as they should be", took_s)
        for number in range(10):
            path = f"{POOLS}/f{number}-supernode-gpu/scale"
            admin.done(admin.patch(path, {"spec": {"replicas": 3}}, MERGE))
        await operator.look()
        operator.told("the same, of which 10 were scaled up", operator.reconcile(keys))
    operator.api.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--federations", type=int, default=500)
    count = parser.parse_args().federations
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder), parts=[])
        cluster.start()
        try:
            asyncio.run(measure(count, cluster))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
