"""NIXL without us: one agent, one registration, one prepared write of all blocks. What a push is compared with."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.messages import PeerHello
from kv_transfer.layout import KVLayout

_MODULES = ("nixl_cu13._api", "nixl_cu12._api", "nixl._api")
_BACKENDS = ["UCX"]


class RawNixl:
    """Configured as our own agent is: no progress thread, UCX only."""

    def __init__(self, name: str, layout: KVLayout) -> None:
        api = _import_nixl()
        strict = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        config = api.nixl_agent_config(enable_prog_thread=False, backends=_BACKENDS, sync_mode=strict)
        self._name, self._layout = name, layout
        self._agent = api.nixl_agent(name, config)
        self._agent.register_memory([(layout.address, layout.total_bytes, layout.device, "")], "DRAM", _BACKENDS)

    def hello(self) -> PeerHello:
        return self._layout.hello(self._name, self._agent.get_agent_metadata())

    def progress(self) -> None:
        """The receiving side's part in making a connection."""
        self._agent.get_new_notifs()

    def prepare(self, peer: PeerHello, pairs: Sequence[tuple[int, int]]) -> Any:
        """A write of (local block, remote block) pairs, to be posted again and again."""
        self._agent.add_remote_agent(peer.agent_metadata)
        local = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", _descriptors(self._layout), "DRAM", _BACKENDS)
        remote = self._agent.prep_xfer_dlist(peer.worker_id, _descriptors(KVLayout.of_peer(peer)), "DRAM", _BACKENDS)
        ours, theirs = (np.array(blocks, dtype=np.int32) for blocks in zip(*pairs, strict=True))
        return self._agent.make_prepped_xfer("WRITE", local, ours, remote, theirs, b"")

    def write_s(self, write: Any) -> float:
        """Seconds from posting a prepared write until NIXL says that it is done."""
        began = time.perf_counter()
        state = self._agent.transfer(write)
        while state == "PROC":
            state = self._agent.check_xfer_state(write)
        if state != "DONE":
            raise RuntimeError(f"a raw NIXL write ended as {state}")
        return time.perf_counter() - began


def _descriptors(layout: KVLayout) -> np.ndarray[Any, np.dtype[np.uint64]]:
    descriptors = np.empty((layout.num_blocks, 3), dtype=np.uint64)  # address, bytes, device
    descriptors[:, 0] = [layout.block_address(block) for block in range(layout.num_blocks)]
    descriptors[:, 1:] = layout.block_bytes, layout.device
    return descriptors


def _import_nixl() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"none of {', '.join(_MODULES)} can be imported; install nixl")
