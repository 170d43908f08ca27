import ctypes

import numpy as np
import pytest

from diptych.engine.interface import Draw, EngineRequest, Kind, Plan, Row
from diptych.engine.limits import Limits
from diptych.engine.scheduler import Scheduler
from diptych.engine.sim.pace import Pace
from diptych.engine.sim.runner import GATHER_BLOCK_BYTES, Chain, SimRunner
from diptych.engine.sim.timing import FixedTiming
from diptych.messages import SamplingParams

BLOCK_SIZE = 4
VOCABULARY = range(10, 500)


def make_runner(**changes: object) -> SimRunner:
    options: dict[str, object] = {
        "kv_cache_bytes": 32 * BLOCK_SIZE * 24,
        "block_size": BLOCK_SIZE,
        "cell_bytes": 24,
        "fingerprint": "model",
        "vocabulary": VOCABULARY,
    }
    return SimRunner(**{**options, **changes})  # type: ignore[arg-type]


def complete(
    runner: SimRunner, prompt: list[int], sampling: SamplingParams, budget: int = 5, **limits: int
) -> list[int]:
    """One request through the real scheduler."""
    scheduler = Scheduler(Limits(budget, 4, BLOCK_SIZE, 200, **limits), runner.num_blocks)
    return run(scheduler, runner, prompt, sampling)


def run(scheduler: Scheduler, runner: SimRunner, prompt: list[int], sampling: SamplingParams) -> list[int]:
    scheduler.add(EngineRequest("r", Kind.LOCAL, tuple(prompt), sampling, b"k" * 32))
    output: list[int] = []
    while (plan := scheduler.plan()) is not None:
        for update in scheduler.commit(plan, runner.execute(plan)).updates:
            output += update.token_ids
    return output


@pytest.mark.parametrize("budget", [1, 3, 100])
def test_chunks_do_not_matter(budget: int) -> None:
    sampling = SamplingParams(max_tokens=12, seed=7)
    prompt = list(range(13))
    assert complete(make_runner(), prompt, sampling, budget) == Chain("model", 24, VOCABULARY).reference(
        prompt, sampling
    )


def test_guesses_do_not_matter() -> None:
    prompt = [1, 2, 3, 4] * 5
    sampling = SamplingParams(max_tokens=20, seed=7)
    narrow = range(10, 12)  # so that guesses are sometimes right
    runner = make_runner(vocabulary=narrow)
    said = complete(runner, prompt, sampling, 40, speculative_tokens=4)
    assert said == Chain("model", 24, narrow).reference(prompt, sampling)


def row(blocks: list[int], num_tokens: int, sampling: SamplingParams) -> Row:
    draws = [Draw(0, 0, sampling, range(num_tokens), ())]
    return Row(0, list(range(num_tokens)), 0, blocks, draws)


@pytest.mark.parametrize("byte", [0, 23, 24 * BLOCK_SIZE - 1, 24 * BLOCK_SIZE * 2, 24 * (2 * BLOCK_SIZE + 1) - 1])
def test_every_byte_of_the_kv_read_counts(byte: int) -> None:
    """Ten tokens in three blocks: one flipped bit anywhere changes the next token (of a vocabulary of 2**20)."""
    runner = make_runner(vocabulary=range(1 << 20))
    sampling = SamplingParams(max_tokens=9, seed=1)
    first = runner.execute(Plan([row([5, 2, 9], 9, sampling)]))[0][0].token_id
    step = Row(0, [first], 9, [5, 2, 9], [Draw(0, 1, sampling, range(9), [first])])
    before = runner.execute(Plan([step]))[0][0].token_id
    block, offset = divmod(byte, runner.block_bytes)
    runner.pool[[5, 2, 9][block], offset] ^= 1
    assert runner.execute(Plan([step]))[0][0].token_id != before


@pytest.mark.parametrize("wrong", range(3))
def test_a_block_that_went_bad_in_the_cache_is_heard_by_whoever_finds_it_there(wrong: int) -> None:
    runner, sampling, prompt = make_runner(), SamplingParams(max_tokens=8, seed=3), list(range(13))
    scheduler = Scheduler(Limits(100, 4, BLOCK_SIZE, 200), runner.num_blocks)
    right = run(scheduler, runner, prompt, sampling)
    assert run(scheduler, runner, prompt, sampling) == right
    cached = [block for block in range(runner.num_blocks) if runner.pool[block].any()]
    runner.pool[cached[wrong]] ^= 1
    assert run(scheduler, runner, prompt, sampling) != right


def test_bytes_behind_the_end_do_not_count() -> None:
    runner = make_runner()
    sampling = SamplingParams(max_tokens=9, seed=1)
    before = runner.execute(Plan([row([0, 1], 6, sampling)]))
    runner.pool[1, 2 * 24 :] = 255
    assert runner.execute(Plan([row([0, 1], 6, sampling)])) == before
    runner.clear_tail(1, 2)
    assert not runner.pool[1, 2 * 24 :].any()


def test_the_pool_is_the_memory_it_says() -> None:
    runner = make_runner()
    runner.execute(Plan([row([3], 4, SamplingParams(max_tokens=2, seed=1))]))
    size = runner.num_blocks * runner.block_bytes
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(runner.pool_address))
    assert (raw.reshape(runner.num_blocks, runner.block_bytes)[3] == runner.pool[3]).all()
    assert raw[: 3 * runner.block_bytes].max() == 0


def test_copies_come_before_rows() -> None:
    runner = make_runner()
    sampling = SamplingParams(max_tokens=9, seed=1)
    runner.execute(Plan([row([0], 4, sampling)]))
    step = Row(0, [9], 4, [7, 1], [Draw(0, 1, sampling, range(4), [9])])
    moved = runner.execute(Plan([step], copies=[(0, 7)]))
    step.blocks = [0, 1]
    assert runner.execute(Plan([step])) == moved


def test_seed_choice_position_model_and_temperature() -> None:
    prompt = [1, 2, 3]

    def say(model: str = "model", choice: int = 0, **sampling: float) -> list[int]:
        params = SamplingParams(**{"max_tokens": 8, "seed": 1, **sampling})  # type: ignore[arg-type]
        return Chain(model, 16, VOCABULARY).reference(prompt, params, choice)

    assert len({tuple(each) for each in (say(), say("other"), say(choice=1), say(seed=2))}) == 4
    assert say(temperature=0, seed=1) == say(temperature=0, seed=2)
    assert len(set(say())) > 1


def test_stop_tokens_and_min_tokens() -> None:
    prompt, free = [1, 2, 3], SamplingParams(max_tokens=8, seed=1)
    output = Chain("model", 24, VOCABULARY).reference(prompt, free)
    stops = SamplingParams(max_tokens=8, seed=1, stop_token_ids=(output[2],))
    assert complete(make_runner(), prompt, stops) == output[: output.index(output[2]) + 1]
    later = SamplingParams(max_tokens=8, seed=1, stop_token_ids=(output[2],), min_tokens=8)
    assert output[2] not in complete(make_runner(), prompt, later)


def test_logprobs_have_their_form() -> None:
    sampling = SamplingParams(max_tokens=2, seed=1, logprobs=3)
    drawn = make_runner().execute(Plan([row([0], 3, sampling)]))[0][0]
    assert drawn.logprob is not None
    assert drawn.logprob.token_id == drawn.token_id
    assert len(drawn.logprob.top) == 3


def test_steps_last_as_long_as_the_model_says() -> None:
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 9))
        now[0] += seconds

    runner = make_runner(pace=Pace(FixedTiming(50.0, 7.0), sleep=sleep, clock=lambda: now[0]))
    sampling = SamplingParams(max_tokens=3, seed=1)
    complete(runner, [1, 2, 3], sampling)
    assert slept == [0.05, 0.007, 0.007]


def test_the_size_of_cells_does_not_change_how_the_chain_is_read() -> None:
    """Small blocks are gathered, large ones are read in place."""
    sampling = SamplingParams(max_tokens=6, seed=7)
    for cell_bytes in (16, GATHER_BLOCK_BYTES // BLOCK_SIZE, GATHER_BLOCK_BYTES // BLOCK_SIZE + 1):
        runner = make_runner(cell_bytes=cell_bytes, kv_cache_bytes=8 * BLOCK_SIZE * cell_bytes)
        expected = Chain("model", cell_bytes, VOCABULARY).reference(range(13), sampling)
        assert complete(runner, list(range(13)), sampling) == expected


@pytest.mark.parametrize("wrong", [{"cell_bytes": 15}, {"vocabulary": []}, {"kv_cache_bytes": 10}])
def test_refuses_what_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"cell|vocabulary|block"):
        make_runner(**wrong)
