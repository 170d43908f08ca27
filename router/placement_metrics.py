"""What the router tells Prometheus about its placements: why, how quickly, and how evenly.

How good the predictions were is counted with the finished requests (`metrics`). Every label set is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from diptych.errors import NoCapacity
from diptych.messages import Role
from router.placement import LOCAL_REASONS, REASONS, Placement

_PLACEMENT_S = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.1)
HALF_LIFE_S = 60.0


class Shares:
    """What each worker was given lately: amounts that lose half of their weight every minute."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[float, float]] = {}  # amount, when it was that much

    def add(self, worker_id: str, amount: float, now: float) -> None:
        self._given[worker_id] = (self.of(worker_id, now) + amount, now)

    def of(self, worker_id: str, now: float) -> float:
        amount, at = self._given.get(worker_id, (0.0, now))
        return float(amount * 0.5 ** ((now - at) / HALF_LIFE_S))

    def keep(self, worker_ids: Iterable[str]) -> None:
        """Forget everybody else."""
        self._given = {worker_id: self._given[worker_id] for worker_id in worker_ids if worker_id in self._given}


def jain(amounts: list[float]) -> float:
    """1 when all have the same, 1/n when one has everything (Jain, Chiu and Hawe, DEC-TR-301, 1984)."""
    squares = sum(amount * amount for amount in amounts)
    return sum(amounts) ** 2 / (len(amounts) * squares) if squares else 1.0


class PlacementMetrics:
    """Not thread-safe beyond what prometheus_client gives."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        labels = ("model_name",)
        fallbacks = Counter(
            "diptych_fallbacks",
            "Placements in which decode computes the prompt itself, by reason.",
            (*labels, "reason"),
            registry=registry,
        )
        placements = Counter("diptych_placements", "Placements, retries included.", labels, registry=registry)
        took = Histogram(
            "diptych_placement_seconds",
            "Look-up, choice and booking of one placement.",
            labels,
            registry=registry,
            buckets=_PLACEMENT_S,
        )
        self._fallbacks = {reason: fallbacks.labels(model, reason) for reason in LOCAL_REASONS}
        self._placements = placements.labels(model)
        self._took = took.labels(model)
        self.prompt_tokens = Shares()  # to compute
        self.sequences = Shares()  # to decode

    def placed(self, placement: Placement, num_tokens: int, now: float, took_s: float) -> None:
        """One placement; `now` in monotonic seconds."""
        assert placement.reason in REASONS
        if placement.reason in self._fallbacks:
            self._fallbacks[placement.reason].inc()
        self._placements.inc()
        self._took.observe(took_s)
        computing = placement.prefill_id or placement.decode_id
        self.prompt_tokens.add(computing, max(1, num_tokens - placement.predicted_cached), now)
        self.sequences.add(placement.decode_id, 1, now)


class PlacementCollector(Collector):
    """Asks, once per scrape, who is there and where the crossover is."""

    def __init__(
        self,
        metrics: PlacementMetrics,
        model: str,
        ready: Callable[[Role], list[str]],
        crossover: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            ready: ids of the placeable workers of a role.
            crossover: see `Placer.crossover`.
            clock: monotonic seconds.
        """
        self._metrics = metrics
        self._model = model
        self._ready = ready
        self._crossover = crossover
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Without asking anybody."""
        yield from (self._balance({}), self._crossover_gauge(None))

    def collect(self) -> Iterator[Metric]:
        now, workers = self._clock(), {role: self._ready(role) for role in Role}
        everybody = [worker_id for ids in workers.values() for worker_id in ids]
        balance = {}
        for role, shares in ((Role.PREFILL, self._metrics.prompt_tokens), (Role.DECODE, self._metrics.sequences)):
            shares.keep(everybody)
            if workers[role]:
                balance[role] = jain([shares.of(worker_id, now) for worker_id in workers[role]])
        yield self._balance(balance)
        try:
            yield self._crossover_gauge(self._crossover())
        except NoCapacity:
            yield self._crossover_gauge(None)

    def _balance(self, balance: dict[Role, float]) -> Metric:
        text = (
            "Jain index of what the workers of a role were given in the last minute or so; 1 is even, 1/n one worker."
        )
        family = GaugeMetricFamily("diptych_load_balance", text, labels=("model_name", "role"))
        for role, value in balance.items():
            family.add_metric((self._model, role.value), value)
        return family

    def _crossover_gauge(self, tokens: float | None) -> Metric:
        text = "Uncached prompt tokens from which a prefill worker pays, by what is measured now; +Inf: never."
        family = GaugeMetricFamily("diptych_crossover_tokens", text, labels=("model_name",))
        if tokens is not None:
            family.add_metric((self._model,), tokens)
        return family
