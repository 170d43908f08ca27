"""A few rows of a linear layer straight from the memory that oneDNN has packed its weight into.

Decoding one sequence reads every weight once, so memory bandwidth is its limit. oneDNN reaches about three quarters of
it and needs two rows to be exact (`linear.py`); a loop over its own packed panels reaches nine tenths with one, keeps
no second copy of the weights, and adds in the same order. How oneDNN packs and adds is nowhere promised. So both are
found out from the weight at hand, and where they are not as known (another version, another processor) nothing of this
is used.

Knows nothing about layers or models.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from diptych.engine.kernels.native import Kernels

MAX_ROWS = 8  # from nine rows on oneDNN is as fast
PANELS = (64, 48, 32, 24, 16, 8)  # outputs side by side, as oneDNN packs on AVX-512, AVX2 and others
CHUNKS = (512, 1024, 256, 2048, 128, 64)  # inputs that oneDNN adds up before it starts a new sum
PROBE_ROWS = 3


class PackedRows:
    """Computes up to `MAX_ROWS` rows; `find` is the way to make one."""

    def __init__(
        self,
        kernels: Kernels,
        packed: Tensor,
        shape: tuple[int, int],
        bias: Tensor | None,
        panel: int,
        chunk: int,
        threads: int,
    ) -> None:
        self._linear = kernels.packed_linear
        self._packed, self._bias = packed, bias  # keep the memory alive
        self._out_features, self._in_features = shape
        self._address: int = torch.ops.mkldnn.data_ptr(packed)
        self._bias_address = None if bias is None else bias.data_ptr()
        self._panel, self._chunk, self._threads = panel, chunk, threads

    def __call__(self, rows: Tensor) -> Tensor:
        """rows: float32 [num_rows, in_features], contiguous. Returns [num_rows, out_features]."""
        out = torch.empty(len(rows), self._out_features)
        self._linear(
            rows.data_ptr(),
            len(rows),
            self._in_features,
            self._address,
            self._panel,
            self._chunk,
            self._bias_address,
            out.data_ptr(),
            self._out_features,
            self._threads,
        )
        return out


def find(
    kernels: Kernels, weight: Tensor, packed: Tensor, bias: Tensor | None, expected: Tensor, probe: Tensor, threads: int
) -> PackedRows | None:
    """How to compute rows from `packed`, or None where it is not known.

    Args:
        weight: float32 [out_features, in_features], of which `packed` is oneDNN's copy.
        probe, expected: rows and what oneDNN makes of them; to be met to the last bit.
    """
    panel = next((size for size in PANELS if size % kernels.vector_floats == 0 and _is_packed(weight, packed, size)), 0)
    if not panel:
        return None
    in_features = weight.shape[1]
    for chunk in (in_features, *(size for size in CHUNKS if size < in_features)):
        rows = PackedRows(kernels, packed, (len(weight), in_features), bias, panel, chunk, threads)
        if torch.equal(rows(probe), expected):
            return rows
    return None


def _is_packed(weight: Tensor, packed: Tensor, panel: int) -> bool:
    """Whether `packed` is [ceil(out / panel)][in][panel], with zeros behind the last output."""
    out_features, in_features = weight.shape
    num_panels = -(-out_features // panel)
    num_bytes = 4 * num_panels * panel * in_features
    if torch.ops.mkldnn._nbytes(packed) < num_bytes:
        return False
    memory = (ctypes.c_uint8 * num_bytes).from_address(torch.ops.mkldnn.data_ptr(packed))
    panels = torch.frombuffer(memory, dtype=torch.float32).view(num_panels, in_features, panel)
    whole = out_features // panel
    if not torch.equal(panels[:whole].transpose(1, 2), weight[: whole * panel].view(whole, panel, in_features)):
        return False
    rest = weight[whole * panel :]
    last = panels[whole:].flatten(0, 1)
    return not len(rest) or (torch.equal(last[:, : len(rest)].T, rest) and not last[:, len(rest) :].any().item())
