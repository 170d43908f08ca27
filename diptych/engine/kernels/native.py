"""The compiled kernels as Python calls: loads the library and binds its functions with ctypes.

ctypes releases the interpreter's lock during a call, as torch does, so that a worker's other threads go on.

Knows nothing about models or when a kernel is used; see `attention.py` and `row_ops.py` for the interfaces.
"""

from __future__ import annotations

import ctypes
import logging
import os
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from diptych.engine.kernels.build import cache_folder, libraries

log = logging.getLogger(__name__)


class Geometry(Structure):
    """How a KV pool is laid out; strides in floats. `struct Geometry` of attention.cpp."""

    _fields_ = (
        ("pool", c_void_p),
        ("block_stride", c_int64),
        ("layer_stride", c_int64),
        ("half_stride", c_int64),
        ("head_stride", c_int64),
        ("block_size", c_int64),
        ("head_dim", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
    )


class Step(Structure):
    """What one step attends to. `struct Step` of attention.cpp."""

    _fields_ = (
        ("tasks", c_void_p),
        ("tables", c_void_p),
        ("slots", c_void_p),
        ("num_tasks", c_int64),
        ("num_tokens", c_int64),
    )


class Rows(Structure):
    """Heads of consecutive tokens. `struct Rows` of attention.cpp."""

    _fields_ = (("data", c_void_p), ("stride", c_int64))

    @classmethod
    def of(cls, heads: Tensor) -> Rows:
        """heads: float32 [num_tokens, num_heads, head_dim], each token's heads contiguous."""
        return cls(heads.data_ptr(), heads.stride(0))


class Int8Weights(Structure):
    """A matrix of bytes with scales. `struct Int8Matrix` of int8.cpp."""

    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("out_features", c_int64),
        ("in_features", c_int64),
    )


SIGNATURES = {
    "diptych_attend": (POINTER(Geometry), POINTER(Step), c_int64, Rows, Rows, Rows, Rows, c_int),
    "diptych_add_norm": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int),
    "diptych_rotate": (c_void_p, c_int64, *[c_void_p] * 4, *[c_int64] * 4, c_float, c_int),
    "diptych_silu_mul": (c_void_p, c_void_p, c_int64, c_int64, c_int),
    "diptych_packed_linear": (
        c_void_p,
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
        c_int64,
        c_void_p,
        c_void_p,
        c_int64,
        c_int,
    ),
    "diptych_int8_linear": (POINTER(Int8Weights), c_void_p, c_int64, c_void_p, c_int),
}


class Kernels:
    """The library's functions, which take addresses; whoever calls them keeps the memory alive."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, types in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, None
        library.diptych_task_tokens.argtypes, library.diptych_task_tokens.restype = (c_int64,), c_int64
        self.attend = library.diptych_attend
        self.add_norm = library.diptych_add_norm
        self.rotate = library.diptych_rotate
        self.silu_mul = library.diptych_silu_mul
        self.packed_linear = library.diptych_packed_linear
        library.diptych_vector_floats.argtypes, library.diptych_vector_floats.restype = (), c_int64
        self.vector_floats: int = library.diptych_vector_floats()
        self.int8_linear = library.diptych_int8_linear
        self.task_tokens = library.diptych_task_tokens


def load_kernels(folder: Path | None = None) -> Kernels | None:
    """The compiled kernels, or None with a line in the log where they cannot be had. `folder`: cache; default the
    user's."""
    return _load(folder or cache_folder(os.environ))


@cache
def _load(folder: Path) -> Kernels | None:
    for path in libraries(folder):
        try:
            return Kernels(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            log.info("%s cannot be loaded, trying another variant: %s", path, error)
    return None


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernels compute this at all."""
    return device.type == "cpu" and dtype == torch.float32 and head_dim <= 1024
