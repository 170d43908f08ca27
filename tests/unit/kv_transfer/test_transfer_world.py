"""Both sides of transfers with the decode side's real block pool: reserve, write, notify, cancel, expire, freeze, die,
restart and reuse in any order.

After every event: a byte lands only where and while it may (`transfer_world`), accepted blocks hold exactly what was
sent, all machines and books agree with themselves. At the end every block is free or cached and every transfer has a
reason on both sides.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from transfer_churn import CHANGES, TROUBLE, WORK, Churn

from diptych.engine.block_pool import BlockState
from kv_transfer.transfer import EndReason, IncomingEnd, Refusal

numbers = st.integers(0, (1 << 16) - 1)


class TransferWorldMachine(RuleBasedStateMachine):
    @initialize(decode_blocks=st.integers(2, 6), prefill_blocks=st.integers(3, 6))
    def begin(self, decode_blocks: int, prefill_blocks: int) -> None:
        self.churn = Churn(decode_blocks, prefill_blocks)

    @rule(events=st.lists(st.tuples(st.sampled_from(WORK), numbers, numbers), min_size=4, max_size=12))
    def work(self, events: list[tuple[str, int, int]]) -> None:
        """Several at once, or a short run would seldom come to a delivery."""
        for event in events:
            self.churn.happen(*event)

    @rule(event=st.sampled_from(CHANGES), at=numbers, which=numbers)
    def change(self, event: str, at: int, which: int) -> None:
        self.churn.happen(event, at, which)

    @rule(event=st.sampled_from(TROUBLE), at=numbers, which=numbers)
    def trouble(self, event: str, at: int, which: int) -> None:
        self.churn.happen(event, at, which)

    def teardown(self) -> None:
        self.churn.world.settle()


TestTransferWorld = TransferWorldMachine.TestCase
TestTransferWorld.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def walk(seed: int, num_runs: int, num_events: int) -> Counter[str]:
    """Runs of drawn events, all kinds of trouble among them. Returns what came of the transfers."""
    seen: Counter[str] = Counter()
    for number in range(num_runs):
        random = Random(f"{seed}/{number}")
        churn = Churn(random.randint(2, 9), random.randint(3, 9))
        for _ in range(num_events):
            roll = random.random()
            churn.draw(random, TROUBLE if roll < 0.08 else CHANGES if roll < 0.16 else WORK)
            for decode in churn.world.decodes.values():
                seen.update(state.name for state in BlockState if decode.pool.count(state))
        churn.world.settle()
        seen += churn.world.counted()
    return seen


def test_long_walks_meet_everything_and_break_nothing() -> None:
    seen = walk(seed=0, num_runs=150, num_events=200)
    assert seen["arrived"] > 200
    wanted = {
        "arrived damaged",
        "proven quiet",
        "not provable",
        *(state.name for state in BlockState),
        *(f"in {end}" for end in IncomingEnd if end is not IncomingEnd.REFUSED),  # that takes a peer that lies
        *(f"out {end}" for end in EndReason if end is not EndReason.BROKEN),  # that takes an engine that errs
        *(f"refused {reason}" for reason in (Refusal.DUPLICATE, Refusal.UNKNOWN_TRANSFER)),
    }
    assert not wanted - seen.keys(), "the walks never came to these; they prove less than they should"


@pytest.mark.slow
def test_deeper() -> None:
    run_state_machine_as_test(
        TransferWorldMachine, settings=settings(max_examples=1_000, stateful_step_count=100, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_longer_walks(seed: int) -> None:
    assert walk(seed, num_runs=500, num_events=400)["arrived"] > 1_000
