"""Whether, and where, a request that failed on a worker is tried again; and what its client has been given so far.

A later attempt computes the request anew, elsewhere. Because a token depends only on the prompt, the sampling
parameters, the seed and its position, it draws the same tokens again; those the client has are compared and held back.
A worker that draws others (another kernel path) is found out: a definite error, never a text of two halves.

Pure: knows no clock, link or worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from diptych.errors import DiptychError, Draining, InternalError, LegFailed
from diptych.messages import Update
from router.placement import Avoid, Pair

MAX_MOVES = 16  # off workers that leave in good order: each costs nobody anything but time
MAX_DEATHS = 2  # attempts that ended with the loss of a worker: the request itself may be what kills them


class Attempts:
    """The failures of one request. `limit`: how often it may be tried in all, at least once; to be moved off a worker
    that leaves is no failure of either."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._errors: list[DiptychError] = []
        self._num_deaths = 0
        self._num_moves = 0
        self._workers: set[str] = set()
        self._pairs: set[Pair] = set()

    @property
    def num_failed(self) -> int:
        return len(self._errors)

    @property
    def avoid(self) -> Avoid:
        """Where it has failed."""
        return Avoid(frozenset(self._workers), frozenset(self._pairs))

    @property
    def avoid_if_possible(self) -> Avoid:
        """Whoever had a part in a failure: often a peer notices that a worker is dead before its connection breaks."""
        return Avoid(frozenset(self._workers.union(*self._pairs) - {""}), frozenset(self._pairs))

    @property
    def error(self) -> DiptychError | None:
        """The latest failure; what the client is told if there is nowhere left to try."""
        return self._errors[-1] if self._errors else None

    def failed(self, error: DiptychError, pair: Pair, refused_by: str, lost: set[str]) -> None:
        """Note a failure of `pair`.

        Args:
            refused_by: the worker that did not take the request, if it was not taken; else "".
            lost: those of the pair whose connection is gone.

        Raises:
            DiptychError: `error`, when another attempt would not help or is one too many.
        """
        self._errors.append(error)
        left = isinstance(error, Draining)
        self._num_moves += left
        self._num_deaths += bool(lost) and not left
        self._pairs.add(pair)
        self._workers |= lost | ({refused_by} if refused_by else set())
        hopeless = not isinstance(error, LegFailed | Draining)
        if hopeless or self.num_failed - self._num_moves >= self._limit or self._num_moves >= MAX_MOVES:
            raise error
        if self._num_deaths >= MAX_DEATHS:
            raise InternalError(
                f"{self._num_deaths} times a worker was lost while it served this request; it is not given to another"
            ) from error


@dataclass(slots=True)
class _Choice:
    tokens: list[int]
    finished: bool = False


class Given:
    """What the client of one request has been given, over all attempts."""

    def __init__(self, num_choices: int) -> None:
        self._choices = [_Choice([]) for _ in range(num_choices)]

    @property
    def done(self) -> bool:
        """Every choice has its finish reason."""
        return all(choice.finished for choice in self._choices)

    def take(self, update: Update) -> Update | None:
        """The part of an update that the client does not have; None if it has it all. Updates come in order.

        Raises:
            InternalError: this attempt drew other tokens than the client was given.
        """
        choice = self._choices[update.choice]
        num_known = len(choice.tokens) - update.position  # of the update's tokens; more if the client is ahead of it
        known = choice.tokens[update.position : update.position + len(update.token_ids)]
        ends_early = update.finish_reason is not None and num_known > len(update.token_ids)
        if update.token_ids[: len(known)] != known or ends_early:
            raise InternalError("a second attempt drew other tokens than the first; the answer ends here")
        if choice.finished or (num_known >= len(update.token_ids) and update.finish_reason is None):
            return None
        choice.finished = update.finish_reason is not None
        choice.tokens += update.token_ids[num_known:]
        return update if num_known == 0 else _without(update, num_known)


def _without(update: Update, count: int) -> Update:
    """An update less its first `count` tokens."""
    return msgspec.structs.replace(
        update,
        position=update.position + count,
        token_ids=update.token_ids[count:],
        logprobs=update.logprobs[count:] if update.logprobs is not None else None,
    )
