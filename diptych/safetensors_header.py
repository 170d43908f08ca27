"""Reads what a safetensors file says about its tensors, without reading the tensors.

The format: 8 bytes little-endian header length, a JSON header, the data
(https://github.com/huggingface/safetensors#format). It holds numbers only, so a file from anywhere can do no more harm
than be wrong; each way of being wrong is an error that names the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a file. `begin` and `end` are byte offsets in the file."""

    dtype: str  # a key of DTYPE_BYTES
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    raw: bytes  # the JSON as it is in the file
    tensors: dict[str, TensorHeader]


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check a file's header.

    Raises:
        ValueError: the file is truncated, not safetensors, or describes data it does not have.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path}: not a safetensors file, or truncated ({size} bytes)")
        raw = file.read(length)

    try:
        entries = json.loads(raw)
        tensors = {
            name: _tensor(entry, data_begin=8 + length) for name, entry in entries.items() if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the safetensors header is malformed ({error})") from error

    for name, tensor in tensors.items():
        if tensor.end > size:
            raise ValueError(f"{path}: truncated; tensor {name} ends at byte {tensor.end}, the file has {size}")
    return SafetensorsHeader(raw, tensors)


def _tensor(entry: dict[str, object], *, data_begin: int) -> TensorHeader:
    dtype, shape, offsets = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError("shape and data_offsets must be lists")
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype} is not supported; supported are {', '.join(DTYPE_BYTES)}")

    num_bytes = DTYPE_BYTES[dtype]
    for dim in shape:
        if not isinstance(dim, int) or dim < 0:
            raise ValueError(f"shape {shape} is not a list of sizes")
        num_bytes *= dim
    begin, end = offsets
    if begin < 0 or end - begin != num_bytes:
        raise ValueError(f"offsets {offsets} do not fit shape {shape} of {dtype}")
    return TensorHeader(dtype, tuple(shape), data_begin + begin, data_begin + end)
