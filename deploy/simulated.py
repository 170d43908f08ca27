"""What a simulated cluster needs before its processes start: timing models that every node can read, and a warning."""

from __future__ import annotations

from typing import Any

import msgspec

from deploy.cluster_config import ClusterConfig, Pool
from deploy.process_config import process_config
from deploy.reconcile import Kind
from diptych.config import WorkerConfig
from diptych.engine.sim.timing_spec import inlined

TIMING = "sim_timing"


def with_timing_inlined(config: ClusterConfig) -> ClusterConfig:
    """Workers may run where a timing file is not: its content goes with their configuration.

    Raises:
        ValueError: a timing model is not known, or its file cannot be used.
    """

    def with_text(pool: Pool) -> Pool:
        options: dict[str, Any] = dict(pool.options)
        if TIMING in options:
            options[TIMING] = inlined(options[TIMING])
        return msgspec.structs.replace(pool, options=options)

    return msgspec.structs.replace(config, prefill=with_text(config.prefill), decode=with_text(config.decode))


def describe_simulation(config: ClusterConfig) -> str:
    """For people: that nothing of this cluster's speed or text is a model's, and what it is instead."""
    played = [process_config(config, kind, slot=0) for kind in (Kind.PREFILL, Kind.DECODE)]
    said = {
        f"{each.sim_timing}{f', {each.sim_speedup:g} times as fast' if each.sim_speedup != 1 else ''}"
        for each in played
        if isinstance(each, WorkerConfig)
    }
    return f"SIMULATED, no model computes; steps take {' and '.join(sorted(said))}"
