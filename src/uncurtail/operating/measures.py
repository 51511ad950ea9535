"""What the operator tells Prometheus: its own work, and how each Federation stands."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from uncurtail.operating.mirror import Mirror

_LABELS = ("namespace", "federation")


class Measures:
    """A registry of its own: nothing is shared between operators of one process."""

    def __init__(self, mirror: Mirror) -> None:
        self.registry = CollectorRegistry()
        self._reconciled = Counter(
            "uncurtail_reconciles",
            "Plans that were carried out.",
            ["result"],
            registry=self.registry,
        )
        self._took = Histogram(
            "uncurtail_reconcile_seconds",
            "From a look at what exists to the last answer.",
            buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 30),
            registry=self.registry,
        )
        self._answers = Counter(
            "uncurtail_api_answers",
            "Answers of the API server.",
            ["method", "status"],
            registry=self.registry,
        )
        self._leading = Gauge(
            "uncurtail_leading", "1 while this operator leads.", registry=self.registry
        )
        collector: Any = _Federations(mirror)
        self.registry.register(collector)

    def answered(self, method: str, status: str) -> None:
        """The API server has answered."""
        self._answers.labels(method, status).inc()

    def reconciled(self, result: str, took_s: float) -> None:
        """A plan was carried out: `ok`, `failed`."""
        self._reconciled.labels(result).inc()
        self._took.observe(took_s)

    def leads(self, held: bool) -> None:
        """Whether this operator leads."""
        self._leading.set(int(held))


class _Federations:
    """Read from the mirror when Prometheus asks."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def collect(self) -> Iterator[Metric]:
        pools = {
            name: GaugeMetricFamily(f"uncurtail_pool_{name}", text, labels=(*_LABELS, "pool"))
            for name, text in (
                ("desired", "SuperNodes that a pool should have."),
                ("ready", "SuperNodes of a pool that are ready."),
                ("draining", "SuperNodes of a pool that were asked to leave."),
            )
        }
        holds = GaugeMetricFamily(
            "uncurtail_federation_condition",
            "1 while a condition of a Federation holds.",
            labels=(*_LABELS, "condition"),
        )
        for key in self._mirror.federations():
            status = (self._mirror.federation(key) or {}).get("status") or {}
            for pool in status.get("pools") or []:
                where = (*key, pool["name"])
                pools["desired"].add_metric(where, pool.get("desired", 0))
                pools["ready"].add_metric(where, pool.get("ready", 0))
                pools["draining"].add_metric(where, len(pool.get("draining") or []))
            for condition in status.get("conditions") or []:
                holds.add_metric((*key, condition["type"]), int(condition["status"] == "True"))
        yield from (*pools.values(), holds)
