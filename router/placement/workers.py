"""Views of workers with their numbers side by side, so that a policy weighs a thousand in a few array operations.

Reading a thousand views, objects all over the memory, takes longer than all sums with them (docs/decisions/041). So a
`Roster` keeps the arrays from one placement to the next and reads only the views that are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, count, repeat
from operator import is_not
from typing import overload

import numpy as np
import numpy.typing as npt

from diptych.messages import Role
from router.placement.dice import Dice
from router.placement.views import WorkerView

Floats = npt.NDArray[np.float64]  # whole numbers in them are exact up to 2**53

QUEUED, RUNNING, AVAILABLE, PREFILL_MS, BASE_MS, SEQUENCE_MS, BYTES_PER_S, MATCHED = range(8)  # rows of `numbers`
MEASURED = slice(PREFILL_MS, MATCHED)


class Workers(Sequence[WorkerView]):
    """Some workers, all of one role, in an order that may matter.

    Attributes:
        numbers: [8, workers], named by the constants above. 0 where nothing is measured; `MATCHED` is of one prompt.
    """

    __slots__ = ("_views", "numbers")

    def __init__(self, views: Sequence[WorkerView], numbers: Floats) -> None:
        self._views = views
        self.numbers = numbers

    @classmethod
    def of(cls, views: Sequence[WorkerView], matches: Mapping[str, int]) -> Workers:
        """
        Args:
            matches: tokens of the prompt that each worker is believed to hold, by id; who is missing holds none.
        """
        workers = cls(views, np.empty((MATCHED + 1, len(views))))
        workers.numbers[:MATCHED] = np.array([*map(_numbers, views)], np.float64).reshape(-1, MATCHED).T
        workers.take_matches([view.worker_id for view in views], matches)
        return workers

    def take_matches(self, names: Sequence[str], matches: Mapping[str, int]) -> None:
        """Of another prompt.

        Args:
            names: of these workers, in their order.
        """
        if matches:
            self.numbers[MATCHED] = np.fromiter(map(matches.get, names, repeat(0)), np.float64, len(names))
        else:
            self.numbers[MATCHED] = 0

    def __len__(self) -> int:
        return len(self._views)

    @overload
    def __getitem__(self, at: int) -> WorkerView: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[WorkerView]: ...
    def __getitem__(self, at: int | slice) -> WorkerView | Sequence[WorkerView]:
        return self._views[at]

    @property
    def queued_prefill_tokens(self) -> Floats:
        return self._row(QUEUED)

    @property
    def num_running(self) -> Floats:
        return self._row(RUNNING)

    @property
    def available_blocks(self) -> Floats:
        return self._row(AVAILABLE)

    @property
    def prefill_ms_per_token(self) -> Floats:
        return self._row(PREFILL_MS)

    @property
    def decode_base_ms(self) -> Floats:
        return self._row(BASE_MS)

    @property
    def decode_ms_per_sequence(self) -> Floats:
        return self._row(SEQUENCE_MS)

    @property
    def matched_tokens(self) -> Floats:
        """Of this prompt, by the prefix index."""
        return self._row(MATCHED)

    def _row(self, row: int) -> Floats:
        """Read only: it may be a roster's."""
        numbers: Floats = self.numbers[row]
        numbers.flags.writeable = False  # of this view of them alone
        return numbers

    def at(self, positions: npt.NDArray[np.int64]) -> Workers:
        """Those at these positions, in their order."""
        views = self._views
        return Workers([views[at] for at in positions.tolist()], self.numbers.take(positions, 1))

    def where(self, which: npt.NDArray[np.bool_]) -> Workers:
        """Those for which it is true."""
        return self if which.all() else self.at(which.nonzero()[0])

    def rotated(self, dice: Dice) -> Workers:
        """As `Dice.rotated`."""
        start = dice.below(len(self)) if len(self) else 0
        if start == 0:
            return self
        numbers = np.concatenate((self.numbers[:, start:], self.numbers[:, :start]), 1)
        return Workers([*self._views[start:], *self._views[:start]], numbers)


class Roster:
    """A fleet by role, remembered. It changes no answer: what is kept here would only have to be read again."""

    def __init__(self) -> None:
        self._views: list[WorkerView] = []
        self._places: list[tuple[int, int]] = []  # of each view: among which role, and where
        self._of_role: list[list[WorkerView]] = [[], []]
        self._names: list[list[str]] = [[], []]
        self._workers = [Workers.of([], {}), Workers.of([], {})]

    def meet(self, views: Sequence[WorkerView], matches: Mapping[str, int]) -> tuple[Workers, Workers]:
        """Prefill and decode workers as they are now. Good until the next call, which may change them.

        Args:
            matches: tokens of the prompt that each worker is believed to hold, by id; who is missing holds none.
        """
        if not self._renew(views):
            self._read(views)
        for names, workers in zip(self._names, self._workers, strict=True):
            workers.take_matches(names, matches)
        prefills, decodes = self._workers
        return prefills, decodes

    def _renew(self, views: Sequence[WorkerView]) -> bool:
        """Read what is new of the same workers. False: they are others."""
        if len(views) != len(self._views):
            return False
        for at in compress(count(), map(is_not, views, self._views)):
            view, before = views[at], self._views[at]
            if view.worker_id != before.worker_id or view.role is not before.role:
                return False
            role, place = self._places[at]
            self._views[at] = self._of_role[role][place] = view
            self._workers[role].numbers[:MATCHED, place] = _numbers(view)
        return True

    def _read(self, views: Sequence[WorkerView]) -> None:
        self._views, self._places, self._of_role = list(views), [], [[], []]
        for view in views:
            role = int(view.role is not Role.PREFILL)
            self._places.append((role, len(self._of_role[role])))
            self._of_role[role].append(view)
        self._names = [[view.worker_id for view in of_role] for of_role in self._of_role]
        self._workers = [Workers.of(of_role, {}) for of_role in self._of_role]


def _numbers(view: WorkerView) -> tuple[float, ...]:
    return (
        view.queued_prefill_tokens,
        view.num_running,
        view.available_blocks,
        view.prefill_ms_per_token,
        view.decode_base_ms,
        view.decode_ms_per_sequence,
        view.transfer_bytes_per_s or view.best_link.bytes_per_s,
    )
