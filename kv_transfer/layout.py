"""How KV lies in a worker's memory, and whether two workers may exchange it.

    address                       one registered region
    │ block 0       │ block 1       │ …  num_blocks × block_bytes
    │ L0 K V L1 K V …│ L0 K V L1 K V …│

A block is contiguous across all layers, so one block is one descriptor and a transfer is a list of block pairs.

Other block sizes and tensor-parallel layouts are refused today: their fingerprints or block bytes differ. They would be
mapped here, by splitting blocks into runs of bytes that are contiguous on both sides. Within a block the order is
layer, K or V, head, token, dim (`model_folder.KV_LAYOUT`), so with L layers, H KV heads and t bytes a token and head:

    block sizes b and B = n·b   the tokens of one head are a run: small block i is part i of n in each of the L·2·H
                                heads of the large one, so each small block takes L·2·H descriptors of b·t bytes
    ranks 1 and R (TP)          a rank's heads are a run: each block takes L·2 descriptors of (H/R)·b·t bytes a rank;
                                each rank has a ticket, and a block is there when all R have delivered
    both                        the runs of the first row; each rank has L·2·H/R of them

For SmolLM2-135M (L = 30, H = 3; b = 16 in float32) one descriptor of 737,280 bytes becomes 180 of 4,096, and copying
between processes is slower the smaller the pieces are. So the same layout on both sides is worth insisting on first.

Knows nothing about torch, NIXL or who owns the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.config import WeightForm
from diptych.errors import Incompatible
from diptych.messages import PeerHello
from diptych.model_folder import KV_LAYOUT, ModelFolder
from kv_transfer.hashing import HASH_SCHEME

# KV depends on the weights' rounding. Raise the number with any change of `diptych.engine.quantization`.
WEIGHTS: dict[WeightForm, str] = {"full": "full", "int8": "int8-groups-of-64-1"}


@dataclass(frozen=True, slots=True)
class KVLayout:
    """One worker's block pool."""

    address: int  # virtual address of block 0 in the worker's process
    num_blocks: int
    block_bytes: int
    fingerprint: str  # of `fingerprint`, below
    device: int = 0
    scratch_block: int | None = None  # one of `num_blocks` that nobody owns; None: connections are not measured

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.block_bytes < 1:
            raise ValueError(f"a pool of {self.num_blocks} blocks of {self.block_bytes} bytes holds nothing")

    @classmethod
    def of_peer(cls, hello: PeerHello) -> KVLayout:
        return cls(hello.pool_address, hello.num_blocks, hello.block_bytes, hello.fingerprint, hello.device)

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    def block_address(self, block: int) -> int:
        """Virtual address of a block.

        Raises:
            IndexError: the pool has no such block.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} is outside a pool of {self.num_blocks}")
        return self.address + block * self.block_bytes

    def hello(self, worker_id: str, agent_metadata: bytes, transports: tuple[str, ...] = ()) -> PeerHello:
        """What this worker tells a peer when they meet."""
        return PeerHello(
            worker_id=worker_id,
            fingerprint=self.fingerprint,
            agent_metadata=agent_metadata,
            pool_address=self.address,
            block_bytes=self.block_bytes,
            num_blocks=self.num_blocks,
            scratch_block=self.scratch_block,
            host=_boot_id(),
            transports=transports,
            device=self.device,
        )


def slow_path(local: PeerHello, remote: PeerHello) -> str:
    """Why KV between these two goes over TCP though they could share memory, or ""."""
    if not local.host or local.host != remote.host:
        return ""
    without = [hello.worker_id for hello in (local, remote) if hello.transports and "sm" not in hello.transports]
    if not without:
        return ""
    return f'both are on one machine, but {" and ".join(without)} may not use shared memory: add "sm" to `transports`'


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux, or not ours to read
        return ""


def fingerprint(*, model: str, revision: str, dtype: str, layout: str, block_size: int, weights: str = "full") -> str:
    """Everything two workers must agree on before one may use the other's KV, as readable `name=value` pairs.

    Args:
        model: name of the model.
        revision: digest of its weights and configuration.
        dtype: of the KV entries.
        layout: name and version of the order within a block, e.g. `model_folder.KV_LAYOUT`.
        block_size: tokens.
        weights: the form the weights are computed with, as in `WEIGHTS`.
    """
    parts = {
        "model": model,
        "revision": revision,
        "dtype": dtype,
        "layout": layout,
        "block_size": str(block_size),
        "weights": weights,
        "hash": HASH_SCHEME,
    }
    return ";".join(f"{name}={value.replace(';', ',')}" for name, value in parts.items())


def fingerprint_of(folder: ModelFolder, name: str, dtype: str, block_size: int, weights: WeightForm) -> str:
    """The `fingerprint` of a model folder served as `name`: routers and workers must come to the same one.

    Raises:
        ValueError: a file of the folder is missing or malformed.
    """
    return fingerprint(
        model=name,
        revision=folder.fingerprint(dtype, block_size),
        dtype=dtype,
        layout=KV_LAYOUT,
        block_size=block_size,
        weights=WEIGHTS[weights],
    )


def check_compatible(local: PeerHello, remote: PeerHello) -> None:
    """Refuse a peer whose blocks would mean something else here.

    Raises:
        Incompatible: with both workers and the first differing values.
    """
    ours, theirs = _parts(local), _parts(remote)
    differences = [
        f"{name} is {ours.get(name, 'not given')} on the first and {theirs.get(name, 'not given')} on the second"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]
    if differences:
        raise Incompatible(
            f"{local.worker_id} and {remote.worker_id} cannot exchange KV: "
            + "; ".join(differences)
            + ". Start both with the same model folder, dtype, weights and block size"
        )


def _parts(hello: PeerHello) -> dict[str, str]:
    parts = dict(part.partition("=")[::2] for part in hello.fingerprint.split(";"))
    parts["block_bytes"] = str(hello.block_bytes)
    return parts
