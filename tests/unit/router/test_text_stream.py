from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.text_stream import TextStream


class Letters:
    """Token ids are indices into a list of pieces: any split of a text into tokens."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = parts

    def push(self, token_id: int) -> str:
        return self._parts[token_id]

    def flush(self) -> str:
        return ""


def run(parts: Sequence[str], stop: Sequence[str]) -> tuple[list[str], bool]:
    stream = TextStream(Letters(parts), stop)
    shown = [stream.push(i) for i in range(len(parts))]
    return [*shown, stream.flush()], stream.stopped


def expected(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The plain definition: the first prefix of the text that ends with a stop string, less the longest such one."""
    for end in range(len(text) + 1):
        hits = [s for s in stop if text[:end].endswith(s)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


PARTS = st.lists(st.text(alphabet="abc", max_size=4), max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


@given(PARTS, STOPS)
def test_every_split_shows_what_the_definition_says(parts: list[str], stop: list[str]) -> None:
    shown, stopped = run(parts, stop)
    assert ("".join(shown), stopped) == expected("".join(parts), stop)


@given(PARTS, STOPS)
def test_nothing_shown_could_still_become_a_stop_string(parts: list[str], stop: list[str]) -> None:
    stream = TextStream(Letters(parts), stop)
    fed = shown = ""
    for i, part in enumerate(parts):
        fed, shown = fed + part, shown + stream.push(i)
        if stream.stopped:
            break
        held = fed[len(shown) :]
        assert fed.startswith(shown)
        assert stream.holding == bool(held)
        # Held exactly as much as necessary: the longest end that begins a stop string.
        longest = max((n for s in stop for n in range(len(s)) if fed.endswith(s[:n])), default=0)
        assert len(held) == longest


@pytest.mark.parametrize(
    ("parts", "stop", "text"),
    [
        (["a", "b", "c", "d"], ["abcd", "bc"], "a"),
        (["xabc"], ["bc", "abc"], "x"),
        (["aa", "ab"], ["aab"], "a"),
        (["STO", "P"], ["STOP"], ""),
        (["no ST", "AR"], ["STOP"], "no STAR"),
    ],
)
def test_the_first_complete_stop_string_cuts_exactly(parts: list[str], stop: list[str], text: str) -> None:
    assert "".join(run(parts, stop)[0]) == text


def test_a_held_beginning_is_shown_at_the_end() -> None:
    assert run(["end ST"], ["STOP"]) == (["end ", "ST"], False)


def test_stop_strings_are_let_through_where_they_may_not_stop() -> None:
    stream = TextStream(Letters(["x STOP y", " STOP z"]), ["STOP"])
    assert stream.push(0, may_stop=False) == "x STOP y"
    assert stream.push(1) == " "
    assert stream.stopped
    assert stream.flush() == ""
