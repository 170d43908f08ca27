from __future__ import annotations

from typing import Any

import msgspec
import pytest

from diptych.config import RouterConfig, WorkerConfig
from diptych.messages import Role

REQUIRED: dict[type[WorkerConfig] | type[RouterConfig], dict[str, Any]] = {
    WorkerConfig: {"role": Role.DECODE, "model": "m"},
    RouterConfig: {"model": "m"},
}


@pytest.mark.parametrize("kind", REQUIRED, ids=lambda kind: kind.__name__)
def test_weights_have_one_of_the_known_forms(kind: type[WorkerConfig] | type[RouterConfig]) -> None:
    given = REQUIRED[kind]
    assert kind(**given).weights == "full"
    for form in ("full", "int8"):
        config = kind(**given, weights=form)
        assert msgspec.json.decode(msgspec.json.encode(config), type=kind) == config
    with pytest.raises(ValueError, match="weights is 'int4'; it is one of full, int8"):
        kind(**given, weights="int4")
    with pytest.raises(msgspec.ValidationError, match="int4"):
        msgspec.json.decode(msgspec.json.encode(given | {"weights": "int4"}), type=kind)


@pytest.mark.parametrize(
    ("field", "value"), [("max_in_flight", 0), ("max_queued", -1), ("max_worker_queue_ms", -1), ("ttft_limit_ms", -1)]
)
def test_limits_of_the_queue_are_checked(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        RouterConfig(model="m", **{field: value})
    assert RouterConfig(model="m", max_queued=0, max_worker_queue_ms=0).max_in_flight == 1_024
