"""What a process serves, from its configuration: the model's name, its fingerprint, and the size of a KV block.

Routers and workers must come to the same. Knows nothing about engines beyond their names.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.config import RouterConfig, WorkerConfig
from diptych.model_folder import ModelFolder
from kv_transfer.layout import fingerprint, fingerprint_of

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SIMULATED_SUFFIX = "-simulated"  # of a model's name, where none was given


@dataclass(frozen=True, slots=True)
class Identity:
    """Attributes: block_bytes: of one KV block, over all layers."""

    name: str
    fingerprint: str
    block_bytes: int


def identity_of(folder: ModelFolder, config: WorkerConfig | RouterConfig) -> Identity:
    """
    Raises:
        ValueError: a file of the folder is missing or malformed, or the dtype is not known.
    """
    name, size = served_name(folder.name, config.served_model, config.engine), config.block_size
    if config.engine == "sim":
        per_token = cell_bytes(folder, config)
        print_ = _simulated(folder, name, config.dtype, size, per_token)
        return Identity(name, print_, size * per_token)
    print_ = fingerprint_of(folder, name, config.dtype, size, config.weights)
    return Identity(name, print_, folder.spec.block_bytes(size, dtype_bytes(config.dtype)))


def served_name(folder_name: str, given: str, engine: str) -> str:
    """The name clients use. A simulated model says so, unless it was given another name."""
    return given or (folder_name + SIMULATED_SUFFIX if engine == "sim" else folder_name)


def cell_bytes(folder: ModelFolder, config: WorkerConfig | RouterConfig) -> int:
    """Memory of a simulated token's KV."""
    return config.sim_cell_bytes or folder.spec.block_bytes(1, dtype_bytes(config.dtype))


def dtype_bytes(dtype: str) -> int:
    """
    Raises:
        ValueError: KV is not kept in this dtype.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _simulated(folder: ModelFolder, name: str, dtype: str, block_size: int, per_token: int) -> str:
    """Differs from any real engine's in revision, layout and weights: the two never exchange KV."""
    return fingerprint(
        model=name,
        revision=folder.fingerprint(dtype, block_size, weights=False),
        dtype=dtype,
        layout=f"simulated,cell={per_token}",
        block_size=block_size,
        weights="simulated",
    )
