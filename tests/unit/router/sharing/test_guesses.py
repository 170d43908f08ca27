"""How long what other routers have just placed counts as cached: from when they said it, not from when it was read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fake_log import FakeLog, FakeLogServer

from router.bookings import Bookings
from router.sharing.load import GUESS_LASTS_S, Guess, SharedLoad, Statement, Statements
from router.sharing.log import START
from router.sharing.talk import Talk

KEY = bytes(8)


class Listener:
    """A router that starts and reads all there is."""

    def __init__(self) -> None:
        self.now = 100.0
        self.server = FakeLogServer(clock=lambda: self.now)
        self.believed: list[tuple[str, float]] = []
        others = SharedLoad()
        self.talk = Talk(
            FakeLog(self.server, "us"), Statements(Bookings()), others, self._believe, clock=lambda: self.now
        )

    def _believe(self, worker_ids: Sequence[str], hashes: list[bytes], until: float) -> None:
        self.believed += [(worker_id, until) for worker_id in worker_ids]

    async def say(self, worker_id: str, at: float) -> None:
        self.now = at
        statement = Statement(1, [], guesses=[Guess((worker_id,), KEY)])
        await FakeLog(self.server, f"of {worker_id}").exchange(START, statement, (), compare=False)


async def test_a_guess_counts_from_when_it_was_said() -> None:
    listener = Listener()
    await listener.say("w0", at=100.0)
    await listener.say("w1", at=101.5)
    listener.now = 102.0
    await listener.talk.exchange()
    assert listener.believed == [("w0", 100.0 + GUESS_LASTS_S), ("w1", 101.5 + GUESS_LASTS_S)]


async def test_what_is_older_than_a_guess_lasts_is_not_believed() -> None:
    listener = Listener()
    await listener.say("w0", at=100.0)
    listener.now = 100.0 + GUESS_LASTS_S  # nobody has spoken since, so nobody has shortened the log
    await listener.talk.exchange()
    assert listener.believed == []
    assert listener.talk.is_alone


async def test_the_end_of_guesses_never_decreases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the index wants it, though two answers may come in the wrong order."""
    listener = Listener()
    await listener.say("w0", at=100.0)
    await listener.say("w1", at=101.0)
    listener.now = 102.0
    first = await FakeLog(listener.server, "us", max_news=1).exchange(START, None, (), compare=False)
    await listener.talk.exchange()
    assert listener.believed[-1] == ("w1", 101.0 + GUESS_LASTS_S)

    async def late(*_: object, **__: object) -> object:
        return first

    monkeypatch.setattr(FakeLog, "exchange", late)
    await listener.talk.exchange()
    assert listener.believed[-1] == ("w0", 101.0 + GUESS_LASTS_S)
