"""What the queue in front of placement tells Prometheus. Every label set is closed."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.admission.ask import Reason

CLASSES = ("high", "normal", "low")  # priority above, at and below 0
_WAIT_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 300)


def class_of(priority: int) -> str:
    return CLASSES[0 if priority > 0 else 1 if priority == 0 else 2]


class AdmissionMetrics(Collector):
    """Not thread-safe beyond what prometheus_client gives."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._model = model
        self._priorities: Callable[[], Sequence[int]] = tuple
        refusals = Counter(
            "diptych_admission_refusals",
            "Requests refused before placement, by reason.",
            ("model_name", "reason"),
            registry=registry,
        )
        waits = Histogram(
            "diptych_admission_wait_seconds",
            "Wait in the router's queue, of requests that were let through.",
            ("model_name",),
            registry=registry,
            buckets=_WAIT_S,
        )
        self._refusals = {reason: refusals.labels(model, reason.value) for reason in Reason}
        self._waits = waits.labels(model)
        registry.register(self)

    def watch(self, priorities: Callable[[], Sequence[int]]) -> None:
        """
        Args:
            priorities: of those that wait now.
        """
        self._priorities = priorities

    def admitted(self, wait_s: float) -> None:
        self._waits.observe(wait_s)

    def refused(self, reason: Reason) -> None:
        self._refusals[reason].inc()

    def collect(self) -> Iterator[Metric]:
        counts = Count(class_of(priority) for priority in self._priorities())
        text = "Requests that wait in the router, by priority: above, at and below 0."
        family = GaugeMetricFamily("diptych_admission_queued", text, labels=("model_name", "priority"))
        for name in CLASSES:
            family.add_metric((self._model, name), counts[name])
        yield family
