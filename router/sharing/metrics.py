"""What the router tells Prometheus about sharing its load with other routers. Every label set is closed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.sharing.log import REASONS

OUTCOMES = (
    "reserved",  # recorded, and nobody was first
    "contended",  # others were first until turns or time were up; recorded without comparing, or told later
    "alone",  # there is no other router
    "skipped",  # Redis failed lately and has not been asked
    *REASONS,  # Redis was asked and failed
)
_WAIT_S = (2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 1e-2, 0.1)


class ReservationMetrics:
    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        labels = ("model_name",)
        settled = Counter(
            "diptych_reservations",
            "Placements by whether other routers could be asked first; all but reserved and alone are local choices.",
            (*labels, "outcome"),
            registry=registry,
        )
        refused = Counter(
            "diptych_reservation_refusals", "Turns in which another router was first.", labels, registry=registry
        )
        waited = Histogram(
            "diptych_reservation_wait_seconds",
            "What a placement waited for Redis and for other routers.",
            labels,
            registry=registry,
            buckets=_WAIT_S,
        )
        others = Gauge("diptych_other_routers", "Routers this one shares its load with.", labels, registry=registry)
        self._settled = {outcome: settled.labels(model, outcome) for outcome in OUTCOMES}
        self._refused = refused.labels(model)
        self._waited = waited.labels(model)
        self._others = others.labels(model)

    def settled(self, outcome: str, waited_s: float) -> None:
        """One placement; `outcome` is one of `OUTCOMES`."""
        self._settled[outcome].inc()
        if outcome not in ("alone", "skipped"):
            self._waited.observe(waited_s)

    def refused(self) -> None:
        self._refused.inc()

    def others(self, count: int) -> None:
        self._others.set(count)
