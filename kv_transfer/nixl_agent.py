"""The real transfer agent: NIXL over UCX.

What is particular about NIXL, and handled here so that nobody else needs to know:
- the whole pool is one registration, and every block is one prepared descriptor; a write only names indices;
- peer death is an exception (`nixlRemoteDisconnectError`), not a state;
- a remote agent that is added twice leaks sockets, and one that restarted must be removed before it is added: names are
  incarnations, so a known name is the same agent and is not added again;
- without a progress thread (it would spin a core) nothing moves unless `poll` or `take_notifications` is called;
- two of its methods pickle; neither is used.

Knows nothing about transfers, tickets or the meaning of a notification.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.messages import PeerHello
from kv_transfer.agent import BlockPair, PeerLost, TransferError, WriteState
from kv_transfer.layout import KVLayout

_MODULES = ("nixl_cu13._api", "nixl_cu12._api", "nixl._api")  # the first two do not import torch
_BACKENDS = ["UCX"]


def ucx_environment(transports: Sequence[str] = ("tcp", "sm", "self"), interfaces: str = "") -> dict[str, str]:
    """What the process's environment must hold *before* NIXL is imported.

    Args:
        transports: UCX_TLS. `sm` copies between processes of one machine; add "rc" and "cuda_copy,cuda_ipc" where there
            is RDMA or a GPU. Across network namespaces or hosts that share nothing, leave out `sm`.
        interfaces: UCX_NET_DEVICES, e.g. "lo" or "eth0"; empty: UCX chooses.

    Raises:
        ValueError: `tcp` is missing; without it UCX does not notice that a peer died.
    """
    if "tcp" not in transports and "all" not in transports:
        raise ValueError(f"transports are {','.join(transports)}; tcp must be one of them to notice a dead peer")
    environment = {
        "UCX_TLS": ",".join(transports),
        "UCX_TCP_TX_SEG_SIZE": "256k",  # twice the throughput of the default 8k
        "UCX_TCP_RX_SEG_SIZE": "256k",
        # A cut link is not an error to TCP for many minutes, and connecting over one would block the calling thread for
        # two (docs/decisions/015).
        "UCX_TCP_USER_TIMEOUT": "3s",  # ends a connection whose bytes stay unacknowledged for so long
        "UCX_TCP_CONN_NB": "y",
        "UCX_TCP_KEEPIDLE": "2s",
        "UCX_TCP_KEEPINTVL": "1s",
        "UCX_TCP_KEEPCNT": "3",
        "UCX_LOG_FILE": "stderr",
        "UCX_WARN_UNUSED_ENV_VARS": "n",
        "NIXL_LOG_LEVEL": "WARN",
    }
    return environment | ({"UCX_NET_DEVICES": interfaces} if interfaces else {})


class NixlAgent:
    """`TransferAgent` over NIXL. Creating it takes ~0.5 s; never fork afterwards."""

    def __init__(self, worker_id: str, layout: KVLayout, memory: str = "DRAM") -> None:
        """Register the pool that `layout` describes; its memory must outlive the agent.

        Args:
            memory: "DRAM" for host memory, "VRAM" for a GPU's.

        Raises:
            TransferError: NIXL or its UCX backend cannot be started.
        """
        self.name = worker_id
        self._api = _import_nixl()
        self._layout = layout
        self._memory = memory
        self._peers: dict[str, Any] = {}  # peer id -> prepared descriptors of its pool
        self._writes: dict[int, tuple[str, Any]] = {}  # our handle -> (peer id, NIXL's handle)
        self._next_handle = 0
        self._lost: type[BaseException] = self._api.nixlBind.nixlRemoteDisconnectError
        try:
            self._agent = self._start()
            self._registration = self._agent.register_memory(
                [(layout.address, layout.total_bytes, layout.device, "")], memory, _BACKENDS
            )
            self._local = self._prepare("NIXL_INIT_AGENT", layout)
        except Exception as error:  # NIXL's own classes share no base but Exception
            raise TransferError(f"NIXL cannot start for {worker_id}: {error!r}") from error

    def metadata(self) -> bytes:
        metadata: bytes = self._agent.get_agent_metadata()
        return metadata

    def add_peer(self, hello: PeerHello) -> None:
        if hello.worker_id in self._peers:
            return
        try:
            loaded = self._agent.add_remote_agent(hello.agent_metadata).decode()
        except Exception as error:
            raise self._failure(hello.worker_id, "cannot be added", error) from error
        if loaded != hello.worker_id:
            self._agent.remove_remote_agent(loaded)
            raise TransferError(f"{hello.worker_id} sent the transfer metadata of {loaded}")
        try:
            self._peers[hello.worker_id] = self._prepare(hello.worker_id, KVLayout.of_peer(hello))
        except Exception as error:
            self._agent.remove_remote_agent(loaded)
            raise self._failure(hello.worker_id, "has a pool it did not register", error) from error

    def remove_peer(self, peer_id: str) -> None:
        descriptors = self._peers.pop(peer_id, None)
        if descriptors is not None:
            descriptors.release()
            self._agent.remove_remote_agent(peer_id)

    def post_write(self, peer_id: str, pairs: Sequence[BlockPair], notification: bytes | None = None) -> int:
        indices = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        try:
            write = self._agent.make_prepped_xfer(
                "WRITE",
                self._local,
                np.ascontiguousarray(indices[:, 0]),
                self._peer(peer_id),
                np.ascontiguousarray(indices[:, 1]),
                notification or b"",
            )
            state = self._agent.transfer(write)
        except TransferError:
            raise
        except Exception as error:
            raise self._failure(peer_id, "refused a write", error) from error
        if state == "ERR":
            raise TransferError(f"a write of {len(pairs)} blocks to {peer_id} could not be posted")
        self._next_handle += 1
        self._writes[self._next_handle] = (peer_id, write)
        return self._next_handle

    def poll(self, handle: int) -> WriteState:
        peer_id, write = self._writes[handle]
        try:
            state = self._agent.check_xfer_state(write)
        except Exception as error:
            raise self._failure(peer_id, "lost a write", error) from error
        if state == "ERR":
            raise TransferError(f"a write to {peer_id} failed")
        return WriteState.DONE if state == "DONE" else WriteState.IN_PROGRESS

    def release(self, handle: int) -> None:
        peer_id, write = self._writes.pop(handle)
        try:
            write.release()
        except Exception as error:  # NIXL keeps such a handle until the agent ends
            raise self._failure(peer_id, "kept a write", error) from error

    def send_notification(self, peer_id: str, payload: bytes) -> None:
        self._peer(peer_id)
        try:
            self._agent.send_notif(peer_id, payload)
        except Exception as error:
            raise self._failure(peer_id, "cannot be notified", error) from error

    def take_notifications(self) -> list[tuple[str, bytes]]:
        received: dict[str, list[bytes]] = self._agent.get_new_notifs()
        return [(peer_id, payload) for peer_id, payloads in received.items() for payload in payloads]

    def close(self) -> None:
        if self._agent is None:
            return
        self._writes.clear()  # their handles are released by their finalizers, in flight or not
        for peer_id in list(self._peers):
            self.remove_peer(peer_id)
        self._local.release()
        self._agent.deregister_memory(self._registration, _BACKENDS)
        self._agent = None  # ends the agent: only this stops writes that are still in flight

    def _start(self) -> Any:
        strict = self._api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT  # anything less can crash with a second thread
        config = self._api.nixl_agent_config(enable_prog_thread=False, backends=_BACKENDS, sync_mode=strict)
        agent = self._api.nixl_agent(self.name, config)
        if "UCX" not in agent.backends:
            raise TransferError("NIXL has no UCX backend")
        return agent

    def _prepare(self, agent_name: str, pool: KVLayout) -> Any:
        descriptors = np.empty((pool.num_blocks, 3), dtype=np.uint64)  # address, bytes, device
        descriptors[:, 0] = np.uint64(pool.address) + np.arange(pool.num_blocks, dtype=np.uint64) * np.uint64(
            pool.block_bytes
        )
        descriptors[:, 1] = pool.block_bytes
        descriptors[:, 2] = pool.device
        return self._agent.prep_xfer_dlist(agent_name, descriptors, self._memory, _BACKENDS)

    def _peer(self, peer_id: str) -> Any:
        try:
            return self._peers[peer_id]
        except KeyError:
            raise TransferError(f"{peer_id} is not a peer of {self.name}; they have not met") from None

    def _failure(self, peer_id: str, what: str, error: Exception) -> TransferError:
        kind = PeerLost if isinstance(error, self._lost) else TransferError
        return kind(f"peer {peer_id} {what}: {type(error).__name__}")


def _import_nixl() -> Any:
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        logging.getLogger("nixl").setLevel(logging.WARNING)  # its default prints every agent to stdout
        return module
    raise TransferError(f"none of {', '.join(_MODULES)} can be imported; install nixl")
