"""A cluster's status as Prometheus text: what is wanted, what serves, and what the load says. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploy.reconcile import Kind, State
from deploy.status import ClusterStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OF_AUTOSCALE = (
    ("diptych_autoscale_wanted", "wanted", "Workers by the latest decision; with mode advise, what it would be."),
    ("diptych_autoscale_needed", "needed", "Workers that the load needs at this moment."),
    ("diptych_autoscale_start_seconds", "start_s", "Expected time until a new worker serves."),
)


def exposition(status: ClusterStatus) -> str:
    """In the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    return "\n".join(_lines(status)) + "\n"


def _lines(status: ClusterStatus) -> Iterator[str]:
    serving = [process.kind for process in status.processes if process.state is State.RUNNING and not process.probing]
    crashed = [crash.kind for crash in status.crashes]
    wanted = {kind: status.wanted.get(kind, 0) for kind in Kind}
    yield from _family("diptych_processes_wanted", "Processes that there should be.", wanted)
    yield from _family(
        "diptych_processes_serving", "Those that run, workers proven by a canary.", {k: serving.count(k) for k in Kind}
    )
    yield from _family("diptych_crashes", "That this controller remembers.", {k: crashed.count(k) for k in Kind})
    for name, field, text in _OF_AUTOSCALE if status.autoscale else ():
        pools = status.autoscale.pools if status.autoscale else {}
        yield from _family(name, text, {kind: getattr(pool, field) for kind, pool in pools.items()})


def _family(name: str, text: str, values: Mapping[Kind, float]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"
    for kind, value in values.items():
        yield f'{name}{{role="{kind}"}} {value:g}'
