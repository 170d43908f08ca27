"""Makes the parts of a simulated cluster, and engine requests out of simulated ones."""

from __future__ import annotations

from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.sim.runner import SimRunner
from diptych.messages import Role, SamplingParams
from kv_transfer.hashing import block_hashes, hash_key
from loadgen.sim.config import SimConfig
from loadgen.sim.event_loop import EventLoop
from loadgen.sim.requests import BlockNames, SimRequest
from loadgen.sim.worker import Listener, SimWorker

MODEL = "simulated"  # fingerprint of the model that is played
VOCABULARY = range(256, 4_352)


def make_workers(config: SimConfig, loop: EventLoop, listener: Listener) -> list[SimWorker]:
    """The fleet: prefill workers first. With content each has KV memory of its own."""
    fleet = config.fleet
    roles = [Role.PREFILL] * fleet.num_prefill + [Role.DECODE] * fleet.num_decode
    return [make_worker(config, index, role, loop, listener) for index, role in enumerate(roles)]


def make_worker(config: SimConfig, index: int, role: Role, loop: EventLoop, listener: Listener) -> SimWorker:
    return SimWorker(
        index,
        role,
        config.limits,
        config.num_blocks,
        config.timing,
        loop,
        listener,
        config.report_interval_ms,
        config.bulk,
        _make_runner(config) if config.content else None,
    )


def _make_runner(config: SimConfig) -> SimRunner:
    size = config.limits.block_size
    return SimRunner(
        kv_cache_bytes=config.num_blocks * config.block_bytes,
        block_size=size,
        cell_bytes=config.block_bytes // size,
        fingerprint=MODEL,
        vocabulary=VOCABULARY,
    )


class Translator:
    """From simulated requests to those of engines. The seed is the request's number."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._names = BlockNames(block_size)
        self._key = hash_key(MODEL)

    def __call__(self, request: SimRequest) -> EngineRequest:
        """Without a prompt, its tokens are zeros and its blocks are named after the hash ids."""
        sampling = SamplingParams(max_tokens=request.output_length, seed=request.number)
        if request.prompt is None:
            prompt, hashes = (0,) * request.input_length, self._names.of(request)
        else:
            prompt = request.prompt
            hashes = tuple(block_hashes(self._key, prompt, self._block_size))
        return EngineRequest(request.request_id, Kind.LOCAL, prompt, sampling, self._key, prompt_hashes=hashes)
