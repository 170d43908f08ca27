"""How rounds of several clients are compared."""

from __future__ import annotations

import pytest

from benchmarks.cross_check import FIGURES, compared


def figures(*values: float) -> dict[str, float]:
    return dict(zip(FIGURES, values, strict=True))


def test_medians_are_compared_with_ours() -> None:
    result = compared(
        {
            "ours": [figures(100, 10, 50), figures(102, 10, 50), figures(900, 10, 50)],  # one round was disturbed
            "theirs": [figures(110.16, 10, 50), figures(99, 10, 50), figures(300, 9, 52)],
        }
    )
    assert result["medians"]["ours"] == figures(102, 10, 50)
    assert result["differences"] == {"theirs": pytest.approx(figures(0.08, 0, 0))}
    assert result["worst_difference"] == pytest.approx(0.08)
    assert compared({"ours": [figures(1, 1, 1)]})["worst_difference"] == 0
