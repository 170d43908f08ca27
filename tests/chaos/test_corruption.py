"""Every injected corruption is noticed, and nothing else is."""

from __future__ import annotations

import uuid

import pytest
from corruption import Result, campaign
from sabotage import SABOTAGES
from transfer_peers import layout_of

from kv_transfer.agent import TransferAgent
from kv_transfer.checksum import Pool
from kv_transfer.nixl_agent import NixlAgent, ucx_environment


def nixl_agents(source: Pool, target: Pool) -> tuple[TransferAgent, TransferAgent]:
    names = f"prefill-{uuid.uuid4().hex}", f"decode-{uuid.uuid4().hex}"
    return NixlAgent(names[0], layout_of(source)), NixlAgent(names[1], layout_of(target))


def check(result: Result, num: int) -> None:
    assert result.missed == []
    assert result.detected == result.corruptions >= num
    assert (result.false_alarms, result.clean >= num) == (0, True)
    assert result.kinds.keys() == {sabotage.name for sabotage in SABOTAGES}


def test_all_corruptions_are_noticed_and_nothing_else() -> None:
    check(campaign(seed=0, num=400), 400)


def test_over_nixl_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ucx_environment(interfaces="lo").items():
        monkeypatch.setenv(name, value)
    check(campaign(seed=1, num=200, make_agents=nixl_agents), 200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_thousand_times(seed: int) -> None:
    check(campaign(seed, num=10_000), 10_000)
