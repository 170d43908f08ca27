"""The whole engine on the tiny model: a request's tokens and log-probabilities are those of its solo run, to the bit,
whatever its neighbours ask for, however few blocks there are, and whether or not its text is guessed ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_model

from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams, TokenLogprob, WorkerStats
from diptych.model_folder import ModelFolder

BLOCK_SIZE = 4
NUM_BLOCKS = 30
VOCABULARY = 279  # of the tiny model
Output = dict[tuple[int, int], list[tuple[int, TokenLogprob | None]]]  # (request, choice) to tokens


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    sampling: dict[str, Any]
    priority: int = 0


token_ids = st.integers(0, VOCABULARY - 1)
# A narrow range, so that parameters that act on tokens act on those that are likely, and texts repeat themselves.
likely = st.sampled_from([5, 17, 40, 99, 200])
samplings = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 12), "seed": st.integers(0, 3)},
    optional={
        "n": st.integers(1, 3),
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_p": st.floats(0.3, 1.0),
        "top_k": st.integers(1, 20),
        "min_p": st.floats(0.0, 0.3),
        "repetition_penalty": st.floats(0.7, 2.0),
        "frequency_penalty": st.floats(-2.0, 2.0),
        "presence_penalty": st.floats(-2.0, 2.0),
        "logit_bias": st.dictionaries(likely | token_ids, st.floats(-20.0, 20.0), max_size=3),
        "min_tokens": st.integers(0, 6),
        "stop_token_ids": st.lists(likely | token_ids, max_size=3).map(tuple),
        "logprobs": st.integers(0, 5),
    },
)
asks = st.builds(Ask, st.lists(likely | token_ids, min_size=1, max_size=20), samplings, st.integers(-1, 1))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TorchRunner:
    folder = ModelFolder(make_tiny_model(tmp_path_factory.mktemp("model")))
    num_bytes = NUM_BLOCKS * folder.spec.num_layers * 2 * folder.spec.num_kv_heads * BLOCK_SIZE * 16 * 4
    return TorchRunner.load(folder, kv_cache_bytes=num_bytes, block_size=BLOCK_SIZE, device="cpu", threads=1)


def run(runner: TorchRunner, asked: list[Ask], **limits: int) -> tuple[Output, WorkerStats]:
    """All requests at once, through one fresh engine."""
    shape = {"max_batch_tokens": 64, "max_running": 8, "block_size": BLOCK_SIZE, "max_context": 256} | limits
    engine = Engine(runner, Limits(**shape))
    for i, ask in enumerate(asked):
        params = SamplingParams(**ask.sampling)
        engine.add(EngineRequest(str(i), Kind.LOCAL, tuple(ask.prompt), params, bytes(32), priority=ask.priority))
    output: Output = {}
    while engine.has_work:
        for update in engine.step().updates:
            tokens = output.setdefault((int(update.request_id), update.choice), [])
            assert update.position == len(tokens)
            logprobs = update.logprobs or [None] * len(update.token_ids)
            tokens += zip(update.token_ids, logprobs, strict=True)
        engine.check()
    return output, engine.stats()


def solo(runner: TorchRunner, asked: list[Ask]) -> Output:
    return {
        (i, choice): tokens
        for i, ask in enumerate(asked)
        for (_, choice), tokens in run(runner, [ask])[0].items()
    }  # fmt: skip


@pytest.mark.parametrize("guesses", [0, 4])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked=st.lists(asks, min_size=2, max_size=5), batch=st.sampled_from([3, 16, 64]))
def test_no_request_touches_another(runner: TorchRunner, guesses: int, asked: list[Ask], batch: int) -> None:
    assert runner.num_blocks == NUM_BLOCKS  # few enough for sequences to yield
    mixed, _ = run(runner, asked, max_batch_tokens=batch, speculative_tokens=guesses, speculative_ngram_min=1)
    assert mixed == solo(runner, asked)


def test_guesses_on_a_model_are_right_often_enough_to_prove_something(runner: TorchRunner) -> None:
    """A bias so strong that the text repeats itself, for three requests that are drawn in three ways."""
    asked = [
        Ask([5, 17, 5, 17], {"max_tokens": 60, "seed": 0, "temperature": 0.0, "logit_bias": {5: 6.0, 17: 6.0}}),
        Ask([5, 17, 40], {"max_tokens": 60, "seed": 1, "logprobs": 2, "logit_bias": {5: 9.0, 17: 9.0, 40: 9.0}}),
        Ask([5], {"max_tokens": 60, "seed": 2, "temperature": 1.5, "n": 2, "logit_bias": {99: 12.0}}),
    ]
    plain, before = run(runner, asked)
    guessed, after = run(runner, asked, speculative_tokens=5, speculative_ngram_min=1)
    assert guessed == plain == solo(runner, asked)
    assert before.drafted_tokens_total == 0
    assert 30 < after.accepted_tokens_total < after.drafted_tokens_total
    assert after.steps_total < before.steps_total
    assert before.preemptions_total > 0  # they do not fit together
