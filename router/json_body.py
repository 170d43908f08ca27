"""A JSON body into a struct, with errors that name the field and the fields nobody here knows.

Knows nothing about what the structs mean.
"""

from __future__ import annotations

import functools
import re
from typing import TypeVar

import msgspec

from diptych.errors import BadRequest

Body = TypeVar("Body", bound=msgspec.Struct)

MAX_REPORTED_FIELDS = 20

_AT = re.compile(r" - at `(?:key` in `)?\$\.?(.*)`$")  # how msgspec says where
_MISSING = re.compile(r"missing required field `(.+?)`")
_names = msgspec.json.Decoder(dict[str, msgspec.Raw])
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # a field's name goes into a header, and it is the client's


def decode_body(body: bytes, kind: type[Body]) -> tuple[Body, tuple[str, ...]]:
    """The request and the names of its fields that are ignored.

    Raises:
        BadRequest: malformed JSON, or a wrong type with `param` naming the field, as in `messages[0].role`.
    """
    try:
        parsed = _decoder(kind).decode(body)
        names = _names.decode(body).keys()
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except RecursionError:
        raise BadRequest("the body is not valid JSON: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid JSON: it holds text that is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    unknown = sorted(names - set(kind.__struct_encode_fields__))
    return parsed, tuple(_safe(name) for name in unknown[:MAX_REPORTED_FIELDS])


@functools.cache
def _decoder(kind: type[Body]) -> msgspec.json.Decoder[Body]:
    return msgspec.json.Decoder(kind)


def _wrong_type(message: str) -> BadRequest:
    """From msgspec's "Expected `int`, got `str` - at `$.n`"."""
    found = _AT.search(message)
    path = found[1] if found else ""
    missing = _MISSING.search(message)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
    what = _AT.sub("", message).replace("`", "")
    return BadRequest(f"{path}: {what}" if path else f"the body is wrong: {what}", param=path or None)


def _safe(name: str) -> str:
    return name if _HEADER_SAFE.fullmatch(name) else "(unprintable)"
