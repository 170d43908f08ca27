from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
from doors import Doors
from scripted_core import Script, ScriptedCore, say

from diptych.errors import InternalError, LegFailed, WireError
from diptych.messages import FinishReason, LegStats, SamplingParams, Update
from router.choices import Generation
from router.prompt_run import ChoiceEvent
from router.requests import TokenRequest
from router.text_request import TextRequest


def request(n: int = 1, *, stop: tuple[str, ...] = (), prompts: int = 1, **sampling: object) -> TextRequest:
    params = SamplingParams(max_tokens=50, seed=1, n=n, **sampling)  # type: ignore[arg-type]
    return TextRequest(tuple(TokenRequest(f"r{i}", [1, 2, 3], params) for i in range(prompts)), 0.0, stop)


class Run:
    def __init__(self, folder: Path, script: Script | None = None) -> None:
        self.core = ScriptedCore(script or (lambda _: []))
        self.doors = Doors(folder, self.core)

    def ids(self, text: str) -> list[int]:
        return self.doors.tokenizer.encode(text, add_special=False)

    async def __call__(self, asked: TextRequest) -> list[ChoiceEvent]:
        self.generation = Generation(self.doors.frontend, asked)
        async with aclosing(self.generation.events()) as events:
            return [event async for event in events]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def text(events: list[ChoiceEvent], index: int = 0) -> str:
    return "".join(event.text for event in events if event.index == index)


def end(events: list[ChoiceEvent], index: int = 0) -> FinishReason | None:
    reasons = [event.finish_reason for event in events if event.index == index]
    assert reasons.count(None) == len(reasons) - 1, "exactly one finish reason"
    return reasons[-1]


async def test_text_without_the_stop_token_but_with_its_id_and_count(run: Run) -> None:
    eos = run.doors.eos
    run.core.script = lambda _: say(run.ids("größe 🦊"), eos=eos, per_update=3)
    events = await run(request(stop_token_ids=(eos,)))
    assert text(events) == "größe 🦊"
    assert end(events) is FinishReason.STOP
    assert [i for event in events for i in event.token_ids] == [*run.ids("größe 🦊"), eos]
    assert run.generation.usage.completion_tokens == len(run.ids("größe 🦊")) + 1
    assert run.core.endings == ["finished"]


async def test_an_ordinary_stop_token_is_not_shown_either(run: Run) -> None:
    (x,) = run.ids("x")
    run.core.script = lambda _: say(run.ids("ab"), eos=x)
    assert text(await run(request(stop_token_ids=(x,)))) == "ab"


async def test_the_same_token_is_text_when_it_does_not_stop(run: Run) -> None:
    run.core.script = lambda _: say(run.ids("axb"))
    events = await run(request(stop_token_ids=tuple(run.ids("x"))))
    assert text(events) == "axb"
    assert end(events) is FinishReason.LENGTH


@pytest.mark.parametrize("per_update", [1, 2, 5, 100])
async def test_a_stop_string_ends_the_run_and_tells_the_core(run: Run, per_update: int) -> None:
    run.core.script = lambda _: say(run.ids("one, two; three"), per_update=per_update)
    events = await run(request(stop=("; ",)))
    assert text(events) == "one, two"
    assert end(events) is FinishReason.STOP
    counted = len(run.ids("one, two; "))
    assert abs(run.generation.usage.completion_tokens - counted) <= 1  # " " may be merged into " three"
    assert run.core.endings in (["closed"], ["finished"])
    if per_update == 1:
        assert run.core.endings == ["closed"]


async def test_one_choice_stops_by_text_while_the_other_goes_on(run: Run) -> None:
    def script(_: TokenRequest) -> list[Update]:
        first = [Update("r", 0, i, [t]) for i, t in enumerate(run.ids("a.b"))]
        second = [Update("r", 1, i, [t]) for i, t in enumerate(run.ids("cdef"))]
        last = Update("r", 1, len(second), run.ids("g"), FinishReason.LENGTH)
        return [*first, *second, last, Update("r", 0, 99, run.ids("never"))]

    run.core.script = script
    events = await run(request(n=2, stop=(".",)))
    assert (text(events, 0), end(events, 0)) == ("a", FinishReason.STOP)
    assert (text(events, 1), end(events, 1)) == ("cdefg", FinishReason.LENGTH)
    assert run.core.endings == ["closed"]


async def test_tokens_of_held_text_are_held_with_it(run: Run) -> None:
    run.core.script = lambda _: say(run.ids("a<b"), logprobs=True)
    events = await run(request(stop=("<|",), logprobs=1))
    shown = [(event.text, len(event.token_ids), len(event.logprobs)) for event in events]
    assert shown == [("a", 1, 1), ("<b", 2, 2)]


async def test_stop_strings_wait_for_min_tokens(run: Run) -> None:
    run.core.script = lambda _: say(run.ids("a.b.c"))
    assert text(await run(request(stop=(".",), min_tokens=3))) == "a.b"


async def test_prompts_become_choices_numbered_across(run: Run) -> None:
    run.core.prefill = LegStats(prompt_cached=2)
    run.core.script = lambda _: say(run.ids("hi"), choices=2)
    events = await run(request(n=2, prompts=3))
    assert [text(events, i) for i in range(6)] == ["hi"] * 6
    usage = run.generation.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (9, 6)
    assert usage.completion_tokens == 6 * len(run.ids("hi"))
    assert run.doors.counted("ok") == 3


async def test_one_failing_prompt_fails_the_call_and_closes_the_others(run: Run) -> None:
    def script(asked: TokenRequest) -> list[Update]:
        if asked.request_id == "r1":
            return [Update("r1", 0, 0, [], error=WireError("leg_failed", "the worker died"))]
        return say(run.ids("x" * 200))

    run.core.script = script
    with pytest.raises(LegFailed, match="the worker died"):
        await run(request(prompts=3))
    assert len(run.core.endings) == 3
    assert run.doors.counted("leg_failed") == 1


@pytest.mark.parametrize("script", [[], [Update("r", 0, 0, [5])], [Update("r", 0, 0, [5]), Update("r", 0, 2, [5])]])
async def test_a_stream_that_ends_early_or_skips_is_never_a_success(run: Run, script: list[Update]) -> None:
    run.core.script = lambda _: script
    with pytest.raises(InternalError):
        await run(request())
    assert run.doors.counted("internal_error") == 1


async def test_a_closed_run_counts_as_cancelled(run: Run) -> None:
    run.core.script = lambda _: say(run.ids("abcdef"))
    events = Generation(run.doors.frontend, request()).events()
    await anext(events)
    await events.aclose()
    assert run.core.endings == ["closed"]
    assert run.doors.counted("cancelled") == 1
