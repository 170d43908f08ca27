"""What a placement policy is: any callable from what the router knows of a prompt and its fleet to a `Placement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from router.placement import UNLEARNT, Learnt, Placement, PromptView, WorkerView

NO_MATCHES: Mapping[str, int] = {}


class Policy(Protocol):
    def __call__(
        self,
        prompt: PromptView,
        workers: Sequence[WorkerView],
        turn: int,
        learnt: Learnt = UNLEARNT,
        matches: Mapping[str, int] = NO_MATCHES,
    ) -> Placement:
        """Choose for one prompt.

        Args:
            turn: rises with every call.
            learnt: of the requests that have ended so far.
            matches: tokens of the prompt that each worker is believed to hold; who is missing holds none.

        Raises:
            NoCapacity: no worker can take the prompt now.
        """
        ...
