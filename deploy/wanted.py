"""The wanted state of a cluster, and what each verb makes of it. Pure; saved whole after every change.

Knows how many processes of each kind should run and which of those that run should leave; not what is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from deploy.reconcile import Kind
from diptych.errors import BadRequest

POOLS = (Kind.PREFILL, Kind.DECODE)
MINIMUM = {Kind.PREFILL: 0, Kind.DECODE: 1, Kind.ROUTER: 1}  # without prefill workers decode computes prompts itself
MAXIMUM = 1_000  # a typing error, not a cluster


def check_counts(counts: Mapping[Kind, int]) -> None:
    """
    Raises:
        BadRequest: a count is out of range.
    """
    for kind, count in counts.items():
        if not MINIMUM[kind] <= count <= MAXIMUM:
            raise BadRequest(f"{kind} is {count}; it must be {MINIMUM[kind]} to {MAXIMUM}", param=str(kind))


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    counts: dict[Kind, int]
    leaving: dict[str, Kind | None] = {}  # process id: the kind that takes its place, if it is another
    down: bool = False  # everything ends
    pinned: frozenset[Kind] = frozenset()  # pools whose count a user has said, while the others follow the load

    def scaled(self, counts: Mapping[Kind, int], *, pin: bool = False) -> Wanted:
        """
        Args:
            pin: the load has no say in these counts any more, until they are released.

        Raises:
            BadRequest: the cluster is going down, or a count is out of range.
        """
        self._check_up()
        check_counts(counts)
        pinned = self.pinned | (set(counts) & set(POOLS)) if pin else self.pinned
        return msgspec.structs.replace(self, counts=self.counts | dict(counts), pinned=pinned)

    def released(self, kinds: Collection[Kind]) -> Wanted:
        """The load decides about these pools again.

        Raises:
            BadRequest: the cluster is going down, or one is no pool of workers.
        """
        self._check_up()
        for kind in kinds:
            self._check_pool(kind)
        return msgspec.structs.replace(self, pinned=self.pinned - set(kinds))

    def without(self, id: str, kind: Kind, *, replace: bool) -> Wanted:
        """A worker is drained; another takes its place if `replace`. Asked twice, it counts once.

        Raises:
            BadRequest: the cluster is going down, or would have no decode worker left.
        """
        self._check_up()
        self._check_pool(kind)
        if id in self.leaving:
            return self
        counts = self.counts if replace else self._less(kind)
        return msgspec.structs.replace(self, counts=counts, leaving=self.leaving | {id: None})

    def moved(self, id: str, kind: Kind, to: Kind) -> Wanted:
        """A worker changes its role: it is drained, and one of the other kind takes its place.

        Raises:
            BadRequest: the cluster is going down, would have no decode worker left or too many of the other kind, or it
                leaves for another reason.
        """
        self._check_up()
        self._check_pool(kind)
        self._check_pool(to)
        if kind is to:
            raise BadRequest(f"it is a {kind} worker already", param="role")
        if id in self.leaving:
            if self.leaving[id] is not to:
                raise BadRequest("it is being drained already", param="worker")
            return self
        counts = self._less(kind)
        counts[to] = counts.get(to, 0) + 1
        check_counts({to: counts[to]})
        return msgspec.structs.replace(self, counts=counts, leaving=self.leaving | {id: to})

    def ended(self, ids: set[str]) -> Wanted:
        """These processes are gone: there is nothing left to want of them."""
        return msgspec.structs.replace(self, leaving={id: to for id, to in self.leaving.items() if id not in ids})

    def nothing(self) -> Wanted:
        """From now on the cluster goes down."""
        return msgspec.structs.replace(self, down=True)

    def _less(self, kind: Kind) -> dict[Kind, int]:
        count = self.counts.get(kind, 0) - 1
        if count < MINIMUM[kind]:
            raise BadRequest(
                f"the cluster would have {max(count, 0)} {kind} workers, and needs {MINIMUM[kind]}: scale it up first, "
                f"e.g. diptych scale {kind}={MINIMUM[kind] + 1}",
                param="worker",
            )
        return self.counts | {kind: count}

    def _check_up(self) -> None:
        if self.down:
            raise BadRequest("the cluster is going down")

    def _check_pool(self, kind: Kind) -> None:
        if kind not in POOLS:
            raise BadRequest(f"a {kind} is in no pool; this is for {' and '.join(POOLS)} workers", param="worker")
