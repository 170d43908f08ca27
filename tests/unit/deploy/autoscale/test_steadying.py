"""Up at once, down late; and how late is learnt from what was regretted."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from deploy.autoscale import AutoscaleSettings, Bounds
from deploy.autoscale.settings import LEARNT_GROWTH
from deploy.autoscale.signals import Known, Need
from deploy.autoscale.steadying import REGRET_WINDOWS, Steadying

SETTINGS = AutoscaleSettings(interval_s=5.0, down_after_s=100.0)
LONGEST_S = LEARNT_GROWTH * SETTINGS.down_after_s
WIDE = Bounds(min=1, max=20)


@dataclass
class Pool:
    """Whose workers serve as soon as they are wanted."""

    settings: AutoscaleSettings = SETTINGS
    wanted: int = 1
    now_s: float = 0.0
    changes: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steadying = Steadying(self.settings)

    def needs(self, count: int, for_s: float, *, silent: bool = False) -> None:
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            self.now_s += self.settings.interval_s
            known = Known(self.wanted, self.wanted, 0 if silent else self.wanted)
            need = Need(count, "so many")
            wanted = self.steadying.steady(self.now_s, known, need, need, WIDE).wanted
            if wanted != self.wanted:
                self.changes.append((self.now_s, wanted - self.wanted))
                self.wanted = wanted

    @property
    def turns(self) -> int:
        return sum((a > 0) is not (b > 0) for (_, a), (_, b) in pairwise(self.changes))


def bursts(pool: Pool, num: int, gap_s: float, lasts_s: float = 30.0) -> None:
    for _ in range(num):
        pool.needs(2, gap_s)
        pool.needs(4, lasts_s)


def test_bursts_that_come_back_are_waited_for() -> None:
    """Twice too early, and the third time what they need is still there."""
    pool = Pool()
    bursts(pool, 12, gap_s=250.0)
    assert pool.steadying.window_s == LONGEST_S
    assert pool.turns == 4  # up, down, up, down, up
    assert pool.wanted == 4


def test_bursts_that_come_rarely_cost_no_more_than_before() -> None:
    pool = Pool()
    bursts(pool, 6, gap_s=100.0 + 100.0 + REGRET_WINDOWS * 100.0 + 60.0)
    assert pool.steadying.window_s == SETTINGS.down_after_s


def test_what_was_learnt_is_forgotten() -> None:
    pool = Pool()
    bursts(pool, 6, gap_s=250.0)
    assert pool.steadying.window_s == LONGEST_S
    pool.needs(1, 10 * LONGEST_S)
    assert pool.wanted == 1
    assert pool.steadying.window_s == LONGEST_S / 2  # one step down that nobody regretted, the last
    pool.needs(4, 50.0)
    pool.needs(1, 10 * LONGEST_S)
    assert pool.steadying.window_s == SETTINGS.down_after_s


def test_learning_can_be_turned_off() -> None:
    fixed = AutoscaleSettings(interval_s=5.0, down_after_s=100.0, down_after_most_s=100.0)
    pool = Pool(fixed)
    bursts(pool, 6, gap_s=250.0)
    assert pool.steadying.window_s == 100.0
    assert pool.turns == 10  # each burst up, each gap down


@examples(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 60), st.booleans()), min_size=1, max_size=12))
def test_whatever_is_needed_nothing_leaves_that_was_needed_within_the_window(
    pieces: list[tuple[int, int, bool]],
) -> None:
    pool, needed = Pool(), list[tuple[float, int]]()
    for count, looks, silent in pieces:
        for _ in range(looks):
            before = pool.wanted
            pool.needs(count, SETTINGS.interval_s, silent=silent)
            needed.append((pool.now_s, before if silent else count))
            assert SETTINGS.down_after_s <= pool.steadying.window_s <= LONGEST_S
            if pool.wanted < before:
                assert not silent
                recent = [each for at_s, each in needed if at_s >= pool.now_s - SETTINGS.down_after_s]
                assert pool.wanted >= max(recent)
    for (up_s, up), (down_s, down) in pairwise(pool.changes):
        assert not (up > 0 > down) or down_s - up_s >= SETTINGS.down_after_s
