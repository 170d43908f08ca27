from __future__ import annotations

import pytest
from ray.exceptions import RpcError

from deploy import draining
from deploy.draining import DrainingNodes


class Head:
    """Ray's head, as far as it is asked here."""

    def __init__(self) -> None:
        self.said: dict[str, int] | None = {}

    def get_draining_nodes(self, timeout: float) -> dict[str, int]:
        assert timeout == draining.ANSWER_S
        if self.said is None:
            raise RpcError("nobody is there")
        return self.said


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    made = Head()
    monkeypatch.setattr(draining, "GcsClient", lambda address: made)
    monkeypatch.setattr(draining.ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "h:1"}))
    return made


def test_nodes_that_are_about_to_go_are_known_until_they_are_gone(head: Head) -> None:
    nodes = DrainingNodes()
    assert nodes.ids == frozenset()
    head.said = {"a": 0, "b": 1_795_283_592_627}
    nodes.refresh()
    assert nodes.ids == {"a", "b"}
    head.said = {"b": 1_795_283_592_627}
    nodes.refresh()
    assert nodes.ids == {"b"}


def test_a_head_that_does_not_answer_changes_nothing(head: Head) -> None:
    nodes = DrainingNodes()
    head.said = {"a": 0}
    nodes.refresh()
    head.said = None
    nodes.refresh()
    nodes.refresh()
    assert nodes.ids == {"a"}
    head.said = {}
    nodes.refresh()
    assert nodes.ids == frozenset()
