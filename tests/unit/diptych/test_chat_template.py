from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import CHATML, write_tokenizer_folder

from diptych.chat_template import ChatTemplate
from diptych.errors import BadRequest

MESSAGES = [{"role": "system", "content": "Be <brief> & kind."}, {"role": "user", "content": "größe?"}]


def test_chatml_from_a_folder(tmp_path: Path) -> None:
    template = ChatTemplate.from_folder(write_tokenizer_folder(tmp_path))
    assert template.render(MESSAGES) == (
        "<|im_start|>system\nBe <brief> & kind.<|im_end|>\n<|im_start|>user\ngröße?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not template.render(MESSAGES, add_generation_prompt=False).endswith("assistant\n")


def test_the_jinja_file_wins_over_the_config(tmp_path: Path) -> None:
    write_tokenizer_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ messages | length }}")
    assert ChatTemplate.from_folder(tmp_path).render(MESSAGES) == "<|bos|><|endoftext|>2"


def test_the_default_of_several_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.from_folder(tmp_path).render(MESSAGES) == "yes"


TRICKY: list[str] = [
    CHATML,
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m | tojson }}\n  {% endif %}\n{% endfor %}\n",
    "{{ messages | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | trim }}{% break %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ tools }}",
    "{{ strftime_now('%Y') }}{% generation %}{{ messages[0].content }}{% endgeneration %}|{{ documents is none }}",
    "{%- if add_generation_prompt -%}  {{ bos_token }}  {%- endif -%}",
]


@pytest.mark.parametrize("source", TRICKY)
def test_renders_as_transformers_does(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs: Any = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, bos_token="<s>")
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES) == theirs[0][0]


def test_a_refused_message_is_the_clients_fault() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        template.render(MESSAGES)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ messages[0].nothing.here }}",
        "{{ 1 + 'a' }}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        None,
    ],
)
def test_bad_templates_name_messages_and_never_quote_the_prompt(source: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert caught.value.param == "messages"
    assert "größe" not in caught.value.message
