"""What the router tells Prometheus about its copy of the prefix index: how old, how true, how large, and what it lacks.

Read from the reader at scrape time, except the lag, which is observed batch by batch. Every label set is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.index_reader import Batches, IndexReader, Resync

_LAG_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)

_GAUGES: tuple[tuple[str, str, Callable[[IndexReader], float]], ...] = (
    ("diptych_index_blocks", "Distinct blocks in the index, guesses included.", lambda reader: len(reader.index)),
    (
        "diptych_index_placements",
        "Blocks that workers said they hold, each counted once for every worker.",
        lambda reader: sum(map(reader.index.num_blocks, reader.index.workers)),
    ),
    ("diptych_index_bytes", "Memory of the index's tables.", lambda reader: reader.index.nbytes),
    ("diptych_index_workers", "Workers whose logs are followed.", lambda reader: len(reader.index.workers)),
    (
        "diptych_index_precision",
        "Share of what was believed that was true, at each worker's last check.",
        lambda reader: reader.index.accuracy.precision,
    ),
    (
        "diptych_index_recall",
        "Share of what was true that was believed, at each worker's last check.",
        lambda reader: reader.index.accuracy.recall,
    ),
)
_COUNTERS: tuple[tuple[str, str, Callable[[IndexReader], float]], ...] = (
    (
        "diptych_index_gaps",
        "Times that a log could not be followed: a batch was missing or unreadable.",
        lambda reader: reader.gaps_total,
    ),
    ("diptych_index_divergences", "Digests that differed from the index.", lambda reader: reader.divergences_total),
    (
        "diptych_index_epochs",
        "Times that a worker had fenced its log and begun anew.",
        lambda reader: reader.epochs_total,
    ),
    ("diptych_index_logs_wanted", "Times that a worker was asked for a new log.", lambda reader: reader.wanted_total),
)


class IndexMetrics(Collector):
    """`observe_lag` is for the reader, which is made after this; `watch` then says what to ask."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._model = model
        lag = Histogram(
            "diptych_index_lag_seconds",
            "From a batch's first event at the worker until it could be matched here, by both hosts' clocks.",
            ("model_name",),
            registry=registry,
            buckets=_LAG_S,
        )
        self.observe_lag: Callable[[float], None] = lag.labels(model).observe
        self._reader: IndexReader | None = None
        self._parts: Mapping[str, Callable[[], str]] = {}
        registry.register(self)

    def watch(self, reader: IndexReader, parts: Mapping[str, Callable[[], str]]) -> None:
        """
        Args:
            parts: what the router does without Redis or with less of it, by name: why that is so now, or "".
        """
        self._reader, self._parts = reader, parts

    def collect(self) -> Iterator[Metric]:
        if self._reader is None:
            return
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=("model_name",))
            gauge.add_metric((self._model,), read(self._reader))
            yield gauge
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=("model_name",))
            counter.add_metric((self._model,), read(self._reader))
            yield counter
        resyncs = ((reason, self._reader.resyncs[reason]) for reason in Resync)
        yield self._by("diptych_index_resyncs", "Snapshots loaded, by why.", "reason", resyncs)
        batches = ((result, self._reader.batches[result]) for result in Batches)
        yield self._by("diptych_index_batches", "Batches read, by what became of them.", "result", batches)
        index = self._reader.index
        corrected = (("wrong", index.wrong_total), ("missed", index.missed_total))
        text = "Blocks that a snapshot took from what was believed of a worker, and those it added."
        yield self._by("diptych_index_corrected_blocks", text, "kind", corrected)
        yield self._degraded()

    def _by(self, name: str, text: str, label: str, counts: Iterable[tuple[str, int]]) -> Metric:
        family = CounterMetricFamily(name, text, labels=("model_name", label))
        for value, count in counts:
            family.add_metric((self._model, value), count)
        return family

    def _degraded(self) -> Metric:
        text = "1 while this part does without Redis, or with an old view of it; /health says why."
        family = GaugeMetricFamily("diptych_degraded", text, labels=("model_name", "part"))
        for part, why in self._parts.items():
            family.add_metric((self._model, part), bool(why()))
        return family
