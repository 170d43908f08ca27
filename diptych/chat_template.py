"""Chat messages to one prompt text, by the Jinja template that ships with the model.

Follows Hugging Face's conventions (transformers `utils/chat_template_utils.py`): block trimming, `raise_exception`,
`strftime_now`, a `tojson` that does not escape HTML, loop controls, `{% generation %}`. Templates come with the
weights, so they run in Jinja's immutable sandbox.

Knows nothing about token ids or the OpenAI schema: messages are plain dicts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from diptych.errors import BadRequest

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """One compiled template. Rendering is pure but for `strftime_now`."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str] | None = None) -> None:
        """`special_tokens` are variables of the template (`bos_token`, `eos_token`, ...). No source: no chat."""
        self._special_tokens = dict(special_tokens or {})
        self._template: jinja2.Template | None = None
        self._fault = "this model has no chat template; use /v1/completions"
        if source is None:
            return
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            # Completions still work, so a bad template is the fault of each chat request and not of the start.
            self._fault = f"the model's chat template is broken at line {error.lineno}: {error.message}"

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """Read `chat_template.jinja` or, without it, `tokenizer_config.json`'s `chat_template`."""
        path = Path(folder)
        config = _read_config(path / "tokenizer_config.json")
        file = path / "chat_template.jinja"
        source = file.read_text("utf-8") if file.is_file() else _default_template(config.get("chat_template"))
        tokens = {name: _token_text(config[name]) for name in _SPECIAL_TOKENS if config.get(name) is not None}
        return cls(source, tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt text.

        Raises:
            BadRequest: the model has no usable template, or the template refuses these messages.
        """
        if self._template is None:
            raise BadRequest(self._fault, param="messages")
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise BadRequest(f"the chat template refuses these messages: {error.message}", param="messages") from None
        except Exception as error:  # whatever a template's expressions raise; the text might quote the prompt
            reason = f"the chat template cannot render these messages ({type(error).__name__})"
            raise BadRequest(reason, param="messages") from None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; to serve, only its body matters."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = json.loads(path.read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    return config


def _default_template(template: str | list[dict[str, str]] | None) -> str | None:
    """A model with several templates names them; `default` is the one for plain chat."""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
