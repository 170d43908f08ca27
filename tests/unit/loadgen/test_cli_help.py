"""What the commands say of themselves, as a terminal shows it."""

from __future__ import annotations

import contextlib

import pytest

from loadgen.cli import main


def test_a_mixture_is_shown_as_it_has_to_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with contextlib.suppress(SystemExit):
        main(["run", "--help"])
    assert "3*sessions+1*documents" in capsys.readouterr().out
