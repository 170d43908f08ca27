"""The tables of this folder: fitted step times and KV sizes, per model, GPU and degree of tensor parallelism.

`fits.csv` and `models.csv` say in their first lines where their numbers come from and under which licence.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from diptych.engine.sim.timing import FittedTiming

MEMORY_SHARE = 0.9  # of a GPU's memory that serving takes; vLLM's default for gpu_memory_utilization
OTHER_BYTES_PER_GPU = 3.76e9  # workspaces, communication buffers; aiconfigurator's `other_mem` for H100
_GPU_BYTES = {"h100_sxm": 80 * 2**30, "h200_sxm": 141 * 10**9}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One engine's model and hardware, as the simulator needs them."""

    model: str
    gpu: str
    tensor_parallel: int
    timing: FittedTiming
    kv_bytes_per_token: int  # 16-bit KV, over all GPUs of the engine
    kv_tokens: int  # that fit beside the weights

    @property
    def name(self) -> str:
        return f"{self.model} {self.gpu} TP{self.tensor_parallel}"


def deployments() -> list[Deployment]:
    """Everything the tables know."""
    models = {row["model"]: row for row in _read("models.csv")}
    return [_deployment(row, models[row["model"]]) for row in _read("fits.csv")]


def deployment(model: str, gpu: str, tensor_parallel: int) -> Deployment:
    """
    Raises:
        ValueError: the tables have no such line; says which there are.
    """
    known = deployments()
    for each in known:
        if (each.model, each.gpu, each.tensor_parallel) == (model, gpu, tensor_parallel):
            return each
    names = ", ".join(each.name for each in known)
    raise ValueError(f"no fitted step times for {model} {gpu} TP{tensor_parallel}; there are: {names}")


def _deployment(row: dict[str, str], model: dict[str, str]) -> Deployment:
    tensor_parallel, kv_bytes = int(row["tensor_parallel"]), int(model["kv_bytes_per_token"])
    per_gpu = MEMORY_SHARE * _GPU_BYTES[row["gpu"]] - OTHER_BYTES_PER_GPU
    room = per_gpu * tensor_parallel - float(model["weight_bytes"])
    numbers = {name: float(row[name]) for name in FittedTiming.__dataclass_fields__}
    return Deployment(
        row["model"], row["gpu"], tensor_parallel, FittedTiming(**numbers), kv_bytes, int(room // kv_bytes)
    )


def _read(name: str) -> list[dict[str, str]]:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
