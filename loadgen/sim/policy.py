"""What a placement policy is: any callable from (prompt, worker views, turn) to a `Placement`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router.placement import Placement, PromptView, WorkerView


class Policy(Protocol):
    def __call__(self, prompt: PromptView, workers: Sequence[WorkerView], turn: int) -> Placement:
        """Choose for one prompt. `turn` rises with every call.

        Raises:
            NoCapacity: no worker can take the prompt now.
        """
        ...
