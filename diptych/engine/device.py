"""Where the engine computes and in which dtype, and what a device needs that host memory does not.

Knows nothing about models, attention or transfers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Compute capability of the first GPUs (Ampere) that multiply bfloat16; older ones emulate it, slower than float32.
BFLOAT16_CAPABILITY = (8, 0)

Capability = tuple[int, int]  # of a CUDA device: major, minor


@dataclass(frozen=True, slots=True)
class Placement:
    """A device that is there, and a dtype that it computes in."""

    device: torch.device
    dtype: torch.dtype


def find_placement(device: str, dtype: str | None = None) -> Placement:
    """`device`: "cpu", "cuda" (the first one) or "cuda:N". `dtype`: a key of `DTYPES`; None: float32 on CPU, where half
    precision has no fast path on most machines, and bfloat16 elsewhere.

    Raises:
        ValueError: this machine has no such device, or the device does not compute in this dtype; says what to set.
    """
    place = _parse(device)
    if place.type == "cuda":
        _require_gpu(place)
    if dtype is None:
        dtype = "float32" if place.type == "cpu" else "bfloat16"
    check_dtype(dtype, place.type, capability_of(place))
    return Placement(place, DTYPES[dtype])


def check_dtype(dtype: str, device_type: str, capability: Capability | None) -> None:
    """Raises ValueError where a device of this type and compute capability cannot compute in `dtype`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device_type == "cuda" and (capability is None or capability < BFLOAT16_CAPABILITY):
        has = "unknown" if capability is None else f"{capability[0]}.{capability[1]}"
        needs = f"{BFLOAT16_CAPABILITY[0]}.{BFLOAT16_CAPABILITY[1]}"
        raise ValueError(
            f"dtype is 'bfloat16', which needs a GPU of compute capability {needs}; this one's is {has}. Set dtype to "
            "'float16' or 'float32' for the router and all workers"
        )


def capability_of(device: torch.device) -> Capability | None:
    """None for anything but a CUDA device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def device_index(device: str) -> int:
    """Which of the process's devices of its type; 0 for host memory."""
    return _parse(device).index or 0


def use_device(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the calling thread's current one. Which one is current is a property of the thread, and kernel
    libraries launch on the current one, not on the one that holds their arguments."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def bind_thread(device: str) -> None:
    """Make `device` the current one of the calling thread for good: for threads that call CUDA without torch. Which
    device's context a thread has is what UCX goes by when it copies."""
    place = _parse(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that this thread told it to do.

    Kernels run after the call that launched them has returned. Whoever reads or writes the device's memory by another
    way (a network card, another process, UCX on streams of its own) is not ordered behind them by anything else.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _parse(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; it is cpu, cuda or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; the engine computes on cpu and cuda")
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else torch.device("cpu")


def _require_gpu(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            f"device is {str(device)!r}, but torch {torch.__version__} finds no GPU; install a build of torch for this "
            "GPU and its driver, or set device to 'cpu'"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {str(device)!r}, but this process sees {torch.cuda.device_count()} GPU(s)")
