"""What the controller has to know again after it was killed: what is wanted, and which actors it has started.

Kept in the key-value store of Ray's head, which lives and dies with the actors it speaks of (a head with external
storage keeps both over a restart). It is written before anything is done about it: an actor that was never created is
found to be missing; one that was created and not written down could be nobody's.
"""

from __future__ import annotations

import msgspec

from deploy.reconcile import Kind
from deploy.status import Hosting
from deploy.wanted import Wanted

NAMESPACE = b"diptych"


class SavedProcess(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # also the actor's name
    kind: Kind
    order: int
    slot: int
    node_id: str = ""  # where it was meant to go; empty: Ray chose
    booked: bool = False  # it has a placement group of its name
    told_to_stop: bool = False
    hosting: Hosting | None = None
    record: msgspec.Raw = msgspec.Raw(b"null")


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    wanted: Wanted
    next_order: int
    processes: list[SavedProcess]
    start_s: dict[Kind, float] = {}  # that workers were measured to take until they serve


class StateStore:
    """Of one run of one cluster. Every call blocks until Ray's head has answered."""

    def __init__(self, run_id: str) -> None:
        self._key = f"diptych:{run_id}".encode()
        self._written = b""

    def load(self) -> Saved | None:
        from ray.experimental.internal_kv import _internal_kv_get

        value = _internal_kv_get(self._key, namespace=NAMESPACE)
        return msgspec.json.decode(value, type=Saved) if value else None

    def save(self, saved: Saved) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        if (value := msgspec.json.encode(saved)) != self._written:
            _internal_kv_put(self._key, value, overwrite=True, namespace=NAMESPACE)
            self._written = value

    def erase(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._key, namespace=NAMESPACE)
