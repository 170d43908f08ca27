"""The script in a real server against its few lines in memory, and what it promises beyond them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from unittest.mock import patch

import pytest
from fake_log import FakeLog, FakeLogServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

import router.sharing.log
from diptych.membership import connect
from router.sharing.load import Guess, Statement, WorkerLoad
from router.sharing.log import START, Answer, ReservationLog, reservations_key

ROUTERS = ("r0", "r1", "r2")
MAX_NEWS = 3  # so that a reader is behind now and then
_clusters = count()


@dataclass(frozen=True)
class Turn:
    router: str
    marks: tuple[str, ...]
    compare: bool
    speaks: bool
    reads: bool  # goes on from there; else the next turn is on an old view
    flush: bool


TURNS = st.lists(
    st.builds(
        Turn,
        st.sampled_from(ROUTERS),
        st.lists(st.sampled_from(["w0", "w1", "w2", "#1"]), max_size=2).map(tuple),
        st.booleans(),
        st.sampled_from([True, True, False]),
        st.sampled_from([True, True, False]),
        st.sampled_from([False] * 15 + [True]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=TURNS)
def test_the_script_does_what_its_model_says(valkey_url: str, turns: list[Turn]) -> None:
    with patch.object(router.sharing.log, "MAX_NEWS", MAX_NEWS):
        asyncio.run(_same_as_in_memory(valkey_url, f"log-{next(_clusters)}", turns))


async def _same_as_in_memory(url: str, cluster: str, turns: list[Turn]) -> None:
    redis, memory = connect(url), FakeLogServer()
    real = {name: ReservationLog(redis, cluster, name) for name in ROUTERS}
    model = {name: FakeLog(memory, name, MAX_NEWS) for name in ROUTERS}
    seen = dict.fromkeys(ROUTERS, (START, START))
    for number, turn in enumerate(turns, start=1):
        if turn.flush:
            await redis.delete(reservations_key(cluster))
            await asyncio.sleep(0.002)  # ids are milliseconds: what comes next is later than what is gone
            memory.flush()
        statement = Statement(number, [WorkerLoad("w0", number, 1, 1)]) if turn.speaks else None
        at, model_at = seen[turn.router]
        answer = await real[turn.router].exchange(at, statement, turn.marks, compare=turn.compare)
        expected = await model[turn.router].exchange(model_at, statement, turn.marks, compare=turn.compare)
        assert _told(answer) == _told(expected)
        if turn.reads:
            seen[turn.router] = (answer.upto, expected.upto)
    await redis.aclose()


def _told(answer: Answer) -> tuple[object, ...]:
    news = [(heard.router_id, heard.statement) for heard in answer.news]
    return answer.written, answer.lost, answer.behind, news


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    client = connect(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture
def cluster() -> str:
    return f"log-{next(_clusters)}"


def some_statement(sequence: int = 1) -> Statement:
    return Statement(sequence, [WorkerLoad("w0", 1, 2, 3)], guesses=[Guess(("w0", "w1"), bytes(range(16)))])


async def test_of_many_that_choose_on_one_view_one_gets_in(redis: Redis, cluster: str) -> None:
    logs = [ReservationLog(redis, cluster, f"r{number}") for number in range(8)]
    answers = await asyncio.gather(*(log.exchange(START, some_statement(), ["w0"], compare=True) for log in logs))
    assert [answer.written for answer in answers].count(True) == 1
    for answer in answers:
        assert answer.written or [heard.statement for heard in answer.news] == [some_statement()]


async def test_those_that_rely_on_other_things_do_not_meet(redis: Redis, cluster: str) -> None:
    logs = [ReservationLog(redis, cluster, f"r{number}") for number in range(4)]
    answers = await asyncio.gather(
        *(log.exchange(START, some_statement(), [f"w{i}", f"#{i}"], compare=True) for i, log in enumerate(logs))
    )
    assert all(answer.written for answer in answers)


async def test_the_log_forgets_after_a_lease_and_is_never_longer_than_said(
    redis: Redis, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.sharing.log, "LEASE_S", 0.05)
    monkeypatch.setattr(router.sharing.log, "MAX_ENTRIES", 20)
    log, key = ReservationLog(redis, cluster, "r0"), reservations_key(cluster)
    for number in range(30):
        await log.exchange(START, some_statement(number), (), compare=False)
    assert await redis.xlen(key) <= 20
    await asyncio.sleep(0.06)
    await log.exchange(START, some_statement(30), (), compare=False)
    assert await redis.xlen(key) == 1
    assert 0 < await redis.pttl(key) <= router.sharing.log.LOG_TTL_MS


async def test_an_entry_takes_what_is_said_of_it(redis: Redis, cluster: str) -> None:
    """And holds no token: marks, ids, loads and parts of keyed hashes are all there is."""
    log, key = ReservationLog(redis, cluster, "router-host-12345678"), reservations_key(cluster)
    workers = [f"decode-host-{number:08x}" for number in range(2)]
    for number in range(500):
        loads = [WorkerLoad(worker, 100_000, 10, 10_000) for worker in workers]
        guess = Guess(tuple(workers), bytes(8 * 100))
        await log.exchange(START, Statement(number, loads, guesses=[guess]), [*workers, "#" + "0" * 16], compare=False)
    assert await redis.memory_usage(key, samples=0) <= 500 * (150 + 2 * 50 + 8 * 100) * 1.2


async def test_what_another_version_wrote_is_left_out(redis: Redis, cluster: str) -> None:
    await redis.xadd(reservations_key(cluster), {"r": "r1", "m": "w0", "b": b"\xc1"})
    answer = await ReservationLog(redis, cluster, "r0").exchange(START, some_statement(), ["w1"], compare=True)
    assert (answer.written, answer.news) == (True, [])
