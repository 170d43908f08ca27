"""What is believed of other routers: whatever is lost, repeated or overtaken, everybody ends with the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router.bookings import Booking, Bookings, Load
from router.placement import Placement
from router.sharing.load import COMPLETE_EVERY_S, LEASE_S, SILENT_S, SharedLoad, Statement, Statements, WorkerLoad

WORKERS = ("w0", "w1", "w2")
ROUTERS = ("r0", "r1", "r2")
NOTHING = Load(0, 0, 0)


def said(sequence: int, complete: bool = False, **tokens: int) -> Statement:
    return Statement(sequence, [WorkerLoad(name, count, 0, 0) for name, count in tokens.items()], complete)


def test_loads_of_all_routers_add_up_and_a_later_word_replaces_an_earlier_one() -> None:
    others = SharedLoad()
    others.heard("r0", said(1, w0=10, w1=5), said_at=0.0)
    others.heard("r1", said(1, w0=7), said_at=0.0)
    assert others.load("w0").tokens == 17
    assert others.take_changed() == {"w0", "w1"}
    others.heard("r0", said(2, w0=1), said_at=0.1)
    assert (others.load("w0").tokens, others.load("w1").tokens) == (8, 5)
    assert others.take_changed() == {"w0"}


def test_what_is_old_or_heard_before_changes_nothing() -> None:
    others = SharedLoad()
    others.heard("r0", said(3, w0=3), said_at=0.0)
    others.heard("r0", said(2, w0=2, w1=2), said_at=0.0)
    assert (others.load("w0").tokens, others.load("w1").tokens) == (3, 2)  # of w1 it is the latest
    others.heard("r0", said(4, complete=True, w1=4), said_at=0.0)
    others.heard("r0", said(3, w0=3), said_at=0.0)
    assert (others.load("w0"), others.load("w1").tokens) == (NOTHING, 4)


def test_a_load_counts_until_its_router_falls_silent_and_a_router_until_its_lease_ends() -> None:
    others = SharedLoad()
    others.heard("r0", said(1, w0=1), said_at=0.0)
    others.heard("r1", said(1, w0=2), said_at=0.5)
    others.take_changed()
    others.expire(SILENT_S - 0.01)
    assert others.load("w0").tokens == 3
    others.expire(SILENT_S)
    assert (others.routers, others.load("w0").tokens) == (["r0", "r1"], 2)
    assert others.take_changed() == {"w0"}
    others.heard("r0", said(2, w0=4), said_at=LEASE_S)
    others.expire(LEASE_S + 0.5)
    assert (others.routers, others.load("w0").tokens) == (["r0"], 4)


def test_a_router_that_says_goodbye_is_gone_at_once() -> None:
    others = SharedLoad()
    others.heard("r0", said(1, w0=1), said_at=0.0)
    others.heard("r0", Statement(2, [], leaving=True), said_at=0.0)
    assert (others.routers, others.load("w0")) == ([], NOTHING)
    assert others.take_changed() == {"w0"}


def test_a_statement_has_what_has_changed_and_now_and_then_everything() -> None:
    bookings = Bookings()
    statements = Statements(bookings)
    first = bookings.book(Placement("w0", "w1", 1.0, 0, "test"), 10, 1)
    assert statements.is_due(0.0)
    assert statements.next(0.0).complete
    assert not statements.is_due(0.1)
    bookings.book(Placement("w0", "w2", 1.0, 0, "test"), 10, 1)
    news = statements.next(0.1)
    assert not news.complete
    assert {each.worker_id: each.tokens for each in news.loads} == {"w0": 20, "w2": 0}
    statements.refused(news)
    first.release()
    again = statements.next(0.2)
    assert {each.worker_id for each in again.loads} == set(WORKERS)
    assert again.sequence == news.sequence + 1
    assert statements.is_due(COMPLETE_EVERY_S)
    statements.unsure()
    assert statements.next(0.3).complete


@dataclass
class Router:
    bookings: Bookings = field(default_factory=Bookings)
    held: list[Booking] = field(default_factory=list)
    statements: Statements = field(init=False)

    def __post_init__(self) -> None:
        self.statements = Statements(self.bookings)

    def work(self, step: Step) -> None:
        """Book, or go on with something that is booked."""
        if step.kind == "book":
            self.held.append(self.bookings.book(Placement(step.prefill, step.decode, 1.0, 0, "test"), 10, 2))
        elif self.held:
            booking = self.held[step.which % len(self.held)]
            booking.prefilled() if step.kind == "prefilled" else booking.release()


@dataclass(frozen=True)
class Step:
    kind: str  # "book", "prefilled", "release", or what becomes of a statement: "said", "refused", "who knows"
    router: str
    prefill: str
    decode: str
    which: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["book", "book", "prefilled", "release", "said", "said", "refused", "who knows"]),
        st.sampled_from(ROUTERS),
        st.sampled_from(WORKERS),
        st.sampled_from(WORKERS),
        st.integers(0, 9),
    ),
    max_size=40,
)


def all_work(steps: list[Step]) -> tuple[dict[str, Router], list[tuple[str, Statement]]]:
    """The routers after these steps, and what was said on the way."""
    routers = {name: Router() for name in ROUTERS}
    said: list[tuple[str, Statement]] = []
    for step in steps:
        router = routers[step.router]
        if step.kind not in ("said", "refused", "who knows"):
            router.work(step)
            continue
        statement = router.statements.next(0.0)
        if step.kind == "refused":
            router.statements.refused(statement)
        else:
            said.append((step.router, statement))
        if step.kind == "who knows":
            router.statements.unsure()
    return routers, said


def truth(routers: Iterable[Router], worker: str) -> Load:
    return Load(*(sum(each) for each in zip(*(router.bookings.own(worker) for router in routers), strict=True)))


@given(STEPS, st.randoms(use_true_random=False))
def test_whatever_is_lost_repeated_or_overtaken_all_agree_after_the_next_complete_statement(
    steps: list[Step], random: Random
) -> None:
    routers, said = all_work(steps)
    for router in routers.values():
        router.statements.unsure()
    last = [(name, router.statements.next(0.0)) for name, router in routers.items()]
    for listener, router in routers.items():
        heard = [each for each in said if random.random() < 0.7] * random.randint(1, 2) + last
        random.shuffle(heard)
        router.bookings.elsewhere = others = SharedLoad()
        for name, statement in heard:
            if name != listener:
                others.heard(name, statement, said_at=0.0)
        for worker in WORKERS:
            assert router.bookings.load(worker) == truth(routers.values(), worker)


@given(STEPS)
def test_where_nothing_is_lost_the_latest_word_of_each_is_enough(steps: list[Step]) -> None:
    """Though none of them is complete but the first; what was refused is said again."""
    routers, said = all_work(steps)
    last = [(name, router.statements.next(0.0)) for name, router in routers.items()]
    others = SharedLoad()
    for name, statement in said + last:
        others.heard(name, statement, said_at=0.0)
    for worker in WORKERS:
        assert others.load(worker) == truth(routers.values(), worker)
