"""`python -m tests.support.wrong_blocks … CONFIG_JSON`: a prefill worker that pushes another block's KV in the place of
each write's first. What lands at decode is whole and well-formed, and belongs somewhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diptych.config import WorkerConfig
from diptych.launch import main
from diptych.worker import process
from kv_transfer.agent import BlockPair
from kv_transfer.nixl_agent import NixlAgent
from prefill_worker.process import run


class WrongBlocks(NixlAgent):
    def post_write(self, peer_id: str, pairs: Sequence[BlockPair], notification: bytes | None = None) -> int:
        (source, target), *rest = pairs
        return super().post_write(peer_id, [(source - 1 if source else 1, target), *rest], notification)


if __name__ == "__main__":
    process.NixlAgent = WrongBlocks  # type: ignore[misc]
    sys.argv = [sys.argv[0], sys.argv[-1]]
    sys.exit(main(run, WorkerConfig))
