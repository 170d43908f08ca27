"""How long a trial will still take."""

from __future__ import annotations

from falsify_cases import a_design

from loadgen.falsify.progress import Progress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def passes(progress: Progress, clock: Clock, seconds: float) -> Progress:
    progress.begins()
    clock.now_s += seconds
    return progress


def test_what_is_left_is_learnt_from_what_is_over() -> None:
    design, clock = a_design(blocks=4), Clock()
    progress = Progress(design, [10.0] * 4, clock)
    letters = "".join(design.orders)
    # 8 runs of 10 s and a third more, 5 shapes of 20 s: nothing is known yet
    assert progress.words(0, None) == f"block 1 of 4, {design.orders[0]}: about 3 min left"
    passes(progress, clock, 60.0).changed()  # a start; to change is quicker
    passes(progress, clock, 11.0).ran(0)
    passes(progress, clock, 4.0).changed()
    passes(progress, clock, 11.0).ran(0)
    shape = design.arms["AB".index(letters[1])].shape
    assert progress.words(1, shape) == f"block 2 of 4, {design.orders[1]}: about {6 * 11 + 3 * 4} s left"
    assert progress.words(3, None).endswith(f"about {2 * 11 + 2 * 4} s left")
