"""Devices and dtypes, without a GPU: what is refused, and what is asked of CUDA when there is one."""

from __future__ import annotations

import pytest
import torch

from diptych.engine import device as device_module
from diptych.engine.device import bind_thread, check_dtype, device_index, find_placement, use_device, wait_for


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, one with bfloat16 and one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: ((9, 0), (7, 5))[place.index])


def test_on_cpu_any_dtype_and_float32_unless_asked() -> None:
    assert find_placement("cpu").dtype is torch.float32
    assert find_placement("cpu", "bfloat16").dtype is torch.bfloat16
    assert find_placement("cpu", "float16").device == torch.device("cpu")


@pytest.mark.usefixtures("gpus")
def test_on_cuda_bfloat16_unless_asked() -> None:
    assert find_placement("cuda").device == torch.device("cuda", 0)
    assert find_placement("cuda").dtype is torch.bfloat16
    assert find_placement("cuda:0", "float32").dtype is torch.float32
    assert find_placement("cuda:1", "float16").device == torch.device("cuda", 1)


@pytest.mark.usefixtures("gpus")
def test_refuses_what_the_gpu_cannot_do_and_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"capability 8\.0; this one's is 7\.5\. Set dtype to 'float16'"):
        find_placement("cuda:1", "bfloat16")
    with pytest.raises(ValueError, match=r"cuda:2.*sees 2 GPU"):
        find_placement("cuda:2")


def test_refuses_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU; install a build of torch"):
        find_placement("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", ""])
def test_refuses_other_devices(device: str) -> None:
    with pytest.raises(ValueError, match="device is"):
        find_placement(device)


def test_refuses_other_dtypes() -> None:
    with pytest.raises(ValueError, match="'int8'; it is one of float32, bfloat16, float16"):
        check_dtype("int8", "cpu", None)


def test_device_index() -> None:
    assert [device_index(device) for device in ("cpu", "cuda", "cuda:3")] == [0, 0, 3]


def test_waits_for_the_stream_of_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Stream:
        def synchronize(self) -> None:
            asked.append("synchronized")

    monkeypatch.setattr(device_module.torch.cuda, "current_stream", lambda place: asked.append(place) or Stream())
    wait_for(torch.device("cuda", 1))
    assert asked == [torch.device("cuda", 1), "synchronized"]
    wait_for(torch.device("cpu"))
    assert len(asked) == 2


def test_binds_a_thread_only_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", bound.append)
    bind_thread("cpu")
    bind_thread("cuda:1")
    assert bound == [torch.device("cuda", 1)]
    with use_device(torch.device("cpu")):
        pass
