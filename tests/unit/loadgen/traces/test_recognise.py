"""Which format a file is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.traces.recognise import recognise

FILES = {
    "mooncake": '{"timestamp": 0, "input_length": 6, "output_length": 3, "hash_ids": [1]}\n',
    "bailian": '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.1, "input_length": 6, "output_length": 3}\n',
    "log": '{"arrival_ms": 0, "input_tokens": 6, "output_tokens": 3}\n',
    "sharegpt": '[{"id": "a", "conversations": []}]\n',
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_by_its_first_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "trace"
    path.write_text(FILES[kind])
    assert recognise(path) == kind
    path.write_text("\ufeff" + FILES[kind])
    assert recognise(path) == kind


@pytest.mark.parametrize("text", ["", "hello\n", "{\n", '{"when": 3}\n', "a,b\n1,2\n"])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ValueError, match="format"):
        recognise(path)
