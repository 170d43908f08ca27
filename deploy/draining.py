"""Which nodes of the Ray cluster are about to go, as Ray's head was told: by a `ray start --block` that got SIGTERM (a
pod that Kubernetes ends), by `ray drain-node`, by Ray's own autoscaler.

Ray starts nothing on such a node any more and ends it as soon as nothing runs there; what does run is left to whoever
started it. Source: ray/_private/node.py of Ray 2.60, `_drain_node_before_shutdown`.
"""

from __future__ import annotations

import ray
import structlog
from ray._raylet import GcsClient
from ray.exceptions import RpcError

ANSWER_S = 2.0  # of Ray's head
LOG = structlog.get_logger()


class DrainingNodes:
    """Asks Ray's head; while that does not answer, what it said last is what counts. Ray has to be initialised."""

    def __init__(self) -> None:
        self.ids: frozenset[str] = frozenset()
        self._client: GcsClient | None = None
        self._answered = True

    def refresh(self) -> None:
        """Blocks until the head has answered, for `ANSWER_S` at most."""
        try:
            if self._client is None:
                self._client = GcsClient(address=ray.get_runtime_context().gcs_address)
            self.ids = frozenset(self._client.get_draining_nodes(timeout=ANSWER_S))
            self._answered = True
        except RpcError as error:
            if self._answered:
                LOG.warning("Ray's head does not say which nodes are about to go", error=str(error))
            self._answered = False
