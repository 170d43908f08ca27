"""Loads the engine that a worker was told to run, and says how far it has come.

What a torch engine needs is imported only for one: a process with a simulated engine starts sooner and takes a third
of the memory without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diptych.config import WorkerConfig
from diptych.engine.interface import Runner
from diptych.engine.sim.loading import load_sim_runner
from diptych.model_folder import ModelFolder
from diptych.telemetry import Logger, make_logger
from kv_transfer.identity import Identity, cell_bytes, dtype_bytes

SAY_EVERY_S = 2.0
SAY_LATE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine's runner. Behind its pool's blocks are scratch blocks that it gives to nobody."""

    runner: Runner
    num_scratch_blocks: int
    about: Mapping[str, object]  # for the log
    quality: Mapping[str, float] = field(default_factory=dict)  # of quantized weights, likewise

    def tell(self, log: Logger) -> None:
        log.info("model_loaded", blocks=self.runner.num_blocks, **self.about)
        if self.quality:
            log.info("quality_checked", **self.quality)


class LoadProgress:
    """Called with a stage and the fraction of it that is done, 0 to 1, from the thread that loads."""

    def __init__(self, log: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next_at = clock() + SAY_EVERY_S

    def __call__(self, stage: str, fraction: float) -> None:
        if (now := self._clock()) >= self._next_at:
            self._next_at = now + SAY_EVERY_S
            self._log.info("loading", stage=stage, percent=int(100 * fraction))


class LateSteps:
    """Warns now and then that this machine is too slow for the engine it plays. Called from the engine's thread."""

    def __init__(self, log: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next_at = clock() + SAY_LATE_EVERY_S  # the first steps of a process are slow
        self._count, self._longest_ms = 0, 0.0

    def __call__(self, late_ms: float) -> None:
        self._count, self._longest_ms = self._count + 1, max(self._longest_ms, late_ms)
        if (now := self._clock()) >= self._next_at:
            self._next_at = now + SAY_LATE_EVERY_S
            self._log.warning(
                "simulation_late",
                steps=self._count,
                longest_ms=round(self._longest_ms, 3),
                reason="computing hashes took longer than the modelled step; fewer workers, slower steps or a smaller "
                "sim_cell_bytes would help",
            )
            self._count, self._longest_ms = 0, 0.0


def load(folder: ModelFolder, config: WorkerConfig, identity: Identity) -> Loaded:
    """Blocks while it reads weights, if there are any.

    Raises:
        ValueError: the folder or the configuration cannot be used.
    """
    log = make_logger(f"{config.role}-loading")
    return _load_sim(folder, config, identity, log) if config.engine == "sim" else _load_torch(folder, config, log)


def device_index(device: str) -> int:
    """Which of the process's devices of its type; 0 for host memory."""
    if device == "cpu":
        return 0
    from diptych.engine.device import device_index

    return device_index(device)


def bind_thread(device: str) -> None:
    """Make `device` the current one of the calling thread; nothing to do for host memory."""
    if device != "cpu":
        from diptych.engine.device import bind_thread

        bind_thread(device)


def _load_sim(folder: ModelFolder, config: WorkerConfig, identity: Identity, log: Logger) -> Loaded:
    runner = load_sim_runner(
        folder.spec,
        identity=identity.fingerprint,
        timing=config.sim_timing,
        speedup=config.sim_speedup,
        block_size=config.block_size,
        cell_bytes=cell_bytes(folder, config),
        model_bytes_per_token=folder.spec.block_bytes(1, dtype_bytes(config.dtype)),
        kv_cache_bytes=config.kv_cache_bytes,
        kv_tokens=config.sim_kv_tokens,
        dtype=config.dtype,
        on_late=LateSteps(log),
    )
    about = {
        "engine": "sim",
        "timing": config.sim_timing,
        "speedup": config.sim_speedup,
        "pool_bytes": runner.pool.nbytes,
    }
    return Loaded(runner, runner.num_scratch_blocks, about)


def _load_torch(folder: ModelFolder, config: WorkerConfig, log: Logger) -> Loaded:
    from diptych.engine.torch_runner import TorchRunner

    runner = TorchRunner.load(
        folder,
        kv_cache_bytes=config.kv_cache_bytes,
        block_size=config.block_size,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        max_running=config.max_running,
        weights=config.weights,
        progress=LoadProgress(log),
    )
    about = {
        "attention": runner.attention_name,
        "exact": runner.exact,
        "weights": runner.weights,
        "weight_bytes": runner.weight_bytes,
    }
    quality = {}
    if runner.quality is not None:
        quality = {"perplexity": runner.quality.quantized, "perplexity_full": runner.quality.full}
    return Loaded(runner, runner.num_scratch_blocks, about, quality)
