from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from scripted_core import ScriptedCore
from tiny_tokenizer import BOS

from diptych.errors import BadRequest, ModelNotFound, PromptTooLong
from router.json_body import decode_body
from router.openai_parse import RenderOptions, parse_chat, parse_completion
from router.openai_schema import ChatRequest, CompletionRequest
from router.text_request import Origin, TextRequest

ORIGIN = Origin("id-1", 0.0)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path, ScriptedCore(lambda _: []))


async def chat(doors: Doors, **fields: Any) -> tuple[TextRequest, RenderOptions]:
    body, _ = decode_body(json.dumps({"messages": HELLO, **fields}).encode(), ChatRequest)
    return await parse_chat(body, doors.frontend, ORIGIN)


async def completion(doors: Doors, **fields: Any) -> tuple[TextRequest, RenderOptions]:
    body, _ = decode_body(json.dumps({"prompt": "hello", **fields}).encode(), CompletionRequest)
    return await parse_completion(body, doors.frontend, ORIGIN)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages": [], "n": "a"}', "n"),
        (b'{"messages": [], "temperature": [1]}', "temperature"),
        (b'{"messages": [{"role": "robot"}]}', "messages[0].role"),
        (b'{"messages": [{}]}', "messages[0].role"),
        (b"{}", "messages"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
        (b'{"messages": [], "logit_bias": {"x": 1}}', "logit_bias"),
        (b'{"messages": [], "logit_bias": {"1": "x"}}', "logit_bias[...]"),
        (b'{"messages": [], "stop": [1]}', "stop[0]"),
        (b'{"messages": [], "stream_options": {"include_usage": 1}}', "stream_options.include_usage"),
        (b'{"messages": [], "max_tokens": 1.5}', "max_tokens"),
        (b'{"messages": [], "top_p": 1e999}', "top_p"),
        (b'{"messages": [', None),
        (b"", None),
        (b"[]", None),
        (b"\xff\xfe", None),
        (b'{"messages": [], "x": ' + b"[" * 100_000 + b"}", None),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', None),
        (b'{"messages": [], "\xff": 1}', None),
    ],
)
def test_wrong_bodies_name_the_field(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_body(body, ChatRequest)
    assert caught.value.param == param
    assert "`" not in caught.value.message or param is None


def test_unknown_fields_are_named_safely() -> None:
    body = json.dumps({"messages": [], "tools": [], "response_format": {}, "bad\r\nname": 1}).encode()
    assert decode_body(body, ChatRequest)[1] == ("(unprintable)", "response_format", "tools")


def test_no_more_than_a_header_full_of_unknown_fields() -> None:
    body = json.dumps({"messages": [], **{f"x{i}": 1 for i in range(1_000)}}).encode()
    assert len(decode_body(body, ChatRequest)[1]) == 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"top_k": -(10**400)}, "top_k"),
        ({"priority": 10**400}, "priority"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 1_025}, "stop"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"priority": 11}, "priority"),
        ({"priority": -11}, "priority"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
async def test_values_out_of_range_name_the_field(doors: Doors, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await chat(doors, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [100_000]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"prompt": ["a", "b"], "return_report": True}, "return_report"),
    ],
)
async def test_wrong_completions_name_the_field(doors: Doors, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await completion(doors, **fields)
    assert caught.value.param == param


async def test_defaults_of_a_chat(doors: Doors) -> None:
    request, options = await chat(doors)
    (prompt,) = request.prompts
    sampling = prompt.sampling
    assert prompt.request_id == "id-1"
    assert sampling.max_tokens == 256 - len(prompt.prompt)
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.logprobs) == (1.0, 1.0, 1, None)
    assert sampling.stop_token_ids == doors.frontend.model.eos_token_ids
    assert options == RenderOptions(False, False, False, False, False, False)
    again, _ = await chat(doors)
    assert again.prompts[0].sampling.seed != sampling.seed


async def test_the_chat_prompt_is_the_template_without_another_bos(doors: Doors) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    request, _ = await chat(doors, messages=messages)
    text = doors.tokenizer.decode(request.prompts[0].prompt, skip_special=False)
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"


async def test_everything_a_chat_may_set_arrives(doors: Doors) -> None:
    request, options = await chat(
        doors,
        model="tiny",
        max_tokens=99,
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        n=2,
        stop="x",
        seed=-3,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=3,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        user="u",
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[9, 9],
        cache_salt="tenant",
        return_token_ids=True,
        return_report=True,
        priority=5,
    )
    sampling = request.prompts[0].sampling
    assert (sampling.max_tokens, sampling.n, sampling.seed, sampling.temperature) == (7, 2, -3, 0)
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (0.5, 0, 0.1, 1.1)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert (sampling.logit_bias, sampling.logprobs, sampling.min_tokens) == ({5: -100}, 3, 2)
    assert sampling.stop_token_ids == (9,)
    assert request.prompts[0].cache_scope == b"tenant"
    assert request.prompts[0].priority == 5
    assert request.stop == ("x",)
    assert options == RenderOptions(True, True, True, True, True, True)


@pytest.mark.parametrize("null", ["max_tokens", "stop", "seed", "n", "stream", "logit_bias", "temperature", "model"])
async def test_null_is_not_given(doors: Doors, null: str) -> None:
    await chat(doors, **{null: None})


async def test_the_four_forms_of_a_prompt(doors: Doors) -> None:
    bos = doors.tokenizer.token_id(BOS)
    forms: list[Any] = ["a", ["a", "b"], [7, 8], [[7], [8, 9]]]
    prompts = [[p.prompt for p in (await completion(doors, prompt=form))[0].prompts] for form in forms]
    (a,), (b,) = doors.tokenizer.encode("a", add_special=False), doors.tokenizer.encode("b", add_special=False)
    assert prompts == [[[bos, a]], [[bos, a], [bos, b]], [[7, 8]], [[7], [8, 9]]]


async def test_others_run_while_many_prompts_are_tokenized(doors: Doors) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    await completion(doors, prompt=["hello"] * 100)
    running.cancel()
    assert turns >= 99


async def test_several_prompts_have_ids_of_their_own(doors: Doors) -> None:
    request, _ = await completion(doors, prompt=["a", "b"])
    assert [prompt.request_id for prompt in request.prompts] == ["id-1-0", "id-1-1"]


async def test_too_long_names_both_numbers(doors: Doors) -> None:
    with pytest.raises(PromptTooLong, match=r"256 tokens.*300.*200 of the prompt and 100") as caught:
        await completion(doors, prompt=[5] * 200, max_tokens=100)
    assert caught.value.param == "prompt"
    assert (await completion(doors, prompt=[5] * 200, max_tokens=56))[0].prompts[0].sampling.max_tokens == 56


async def test_a_default_is_clipped_to_the_context(doors: Doors) -> None:
    assert (await completion(doors))[0].prompts[0].sampling.max_tokens == 16
    assert (await completion(doors, prompt=[5] * 250))[0].prompts[0].sampling.max_tokens == 6
    with pytest.raises(PromptTooLong, match="256 of the prompt and at least 1"):
        await completion(doors, prompt=[5] * 256)


async def test_another_model_is_not_found(doors: Doors) -> None:
    with pytest.raises(ModelNotFound, match="'tiny'"):
        await chat(doors, model="gpt-4")


async def test_echo_keeps_the_prompt_as_written(doors: Doors) -> None:
    (_, options) = await completion(doors, prompt="größe", echo=True)
    assert options.echoes == ("größe",)
    ids = doors.tokenizer.encode("hello", add_special=False)
    assert (await completion(doors, prompt=ids, echo=True))[1].echoes == ("hello",)
