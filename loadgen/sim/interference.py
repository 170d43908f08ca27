"""Does the simulator know what a prompt costs those who decode beside it? Held against measured time per token.

Measured: Llama-3.1-70B in FP8 on 4 x H100 (TP4) with vLLM, about 8,192 tokens in and 1,024 out, closed loop. The
figures come from InferenceMAX runs in aiconfigurator's validation data (Apache-2.0). That benchmark draws lengths
uniformly from 0.8 to 1 of the nominal ones, sends ten prompts a client, and serves with chunks of 8,192 tokens, as many
sequences as clients, and no prefix cache (https://github.com/InferenceMAX/InferenceMAX, README): so does this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.engine.sim.fits import deployment
from loadgen.sim.baselines import round_robin
from loadgen.sim.cluster import simulate
from loadgen.sim.config import Fleet, config_for
from loadgen.sim.metrics import Summary, summarise
from loadgen.sim.requests import SimRequest
from loadgen.sim.workload import ClosedLoop

INPUT_TOKENS, OUTPUT_TOKENS, RANGE_RATIO, PROMPTS_PER_CLIENT = 8_192, 1_024, 0.8, 10
MEASURED_TPOT_MS = {4: 13.274, 8: 15.766, 16: 21.064, 32: 32.824, 64: 53.495}  # by clients


@dataclass(frozen=True, slots=True)
class Comparison:
    concurrency: int
    measured_tpot_ms: float
    simulated_tpot_ms: float

    @property
    def error(self) -> float:
        """Relative, with its sign."""
        return self.simulated_tpot_ms / self.measured_tpot_ms - 1


def compare(concurrency: int, seed: int = 0) -> Comparison:
    """One point of the validation."""
    return Comparison(concurrency, MEASURED_TPOT_MS[concurrency], run(concurrency, seed).tpot_ms.mean)


def run(concurrency: int, seed: int = 0) -> Summary:
    """The benchmark as it was measured, on one simulated engine."""
    engine = deployment("nvidia/Llama-3.1-70B-Instruct-FP8", "h100_sxm", 4)
    config = config_for(engine, Fleet(0, 1), round_robin, block_size=16, max_running=concurrency)
    random = np.random.default_rng(seed)

    def make(number: int, arrival_ns: int) -> SimRequest:
        inputs, outputs = (
            int(random.integers(int(RANGE_RATIO * top), top + 1)) for top in (INPUT_TOKENS, OUTPUT_TOKENS)
        )
        return SimRequest(number, arrival_ns, inputs, outputs)

    return summarise(simulate(config, ClosedLoop(make, concurrency, PROMPTS_PER_CLIENT * concurrency)))


def mape(comparisons: list[Comparison]) -> float:
    """Mean absolute relative error."""
    return sum(abs(each.error) for each in comparisons) / len(comparisons)
