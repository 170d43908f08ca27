"""`diptych explain`: every router is asked at its own door, and the answer is readable."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from placement_views import choose, decode, prefill

from deploy.api import AdminError
from deploy.cli import app
from deploy.explain import admin_doors, explain
from deploy.explain_text import explained
from deploy.reconcile import Health, Kind, State
from deploy.status import ClusterStatus, ProcessStatus
from deploy.web_server import served
from diptych.errors import BadRequest
from diptych.messages import LegStats, RouterRecord, SamplingParams
from diptych.telemetry import make_logger
from router.admin_door import make_admin_app
from router.explain import ExplainRing
from router.requests import Report, TokenRequest

NOWHERE = "127.0.0.1:1"


def ring_with(*names: str) -> ExplainRing:
    ring = ExplainRing(8, "min-ttft", "auto")
    for name in names:
        request = TokenRequest(name, [1] * 160, SamplingParams(max_tokens=4, seed=1), client_id=f"my/{name}")
        placement = choose(prefill("p0"), prefill("p1", queued_prefill_tokens=90), decode("d0"), remote="always")
        ring.placed(request, placement, 0, 1e-4)
        report = Report(prefill=LegStats(prompt_cached=32, queue_ms=10.0, compute_ms=200.0), num_tokens=4)
        report.placed(placement, 0, 0.0)
        ring.ended(request, report, None)
    return ring


@pytest.fixture
def doors() -> Iterator[list[str]]:
    """Two routers; the second one knows the request."""
    log = make_logger("test", stream=io.StringIO())
    unused = cast(Any, None)
    apps = [make_admin_app(unused, unused, ring, log) for ring in (ring_with("other"), ring_with("one"))]
    with served(apps[0], "127.0.0.1", 0) as first, served(apps[1], "127.0.0.1", 0) as second:
        yield [address.removeprefix("http://") for address in (first, second)]


def test_the_router_that_knows_answers(doors: list[str]) -> None:
    found = explain(doors, "my/one")
    assert (found.request_id, found.prompt_tokens) == ("one", 160)
    assert explain([NOWHERE, *doors], "one") == found


def test_what_nobody_knows_is_said_and_whom_one_could_not_ask(doors: list[str]) -> None:
    with pytest.raises(BadRequest, match="no router remembers 'nothing'"):
        explain(doors, "nothing")
    with pytest.raises(AdminError, match=NOWHERE):
        explain([*doors, NOWHERE], "nothing")
    with pytest.raises(AdminError, match="no router runs"):
        explain([], "one")


def test_doors_are_those_that_routers_said() -> None:
    record = RouterRecord(router_id="r", http_address="h:1", grpc_address="h:2", admin_address="h:3")
    routers = [
        ProcessStatus(
            id=f"router-{number}", kind=Kind.ROUTER, state=State.RUNNING, health=Health.OK, log_path="", record=said
        )
        for number, said in enumerate([msgspec.Raw(msgspec.json.encode(record)), msgspec.Raw(b"null")])
    ]
    status = ClusterStatus(
        name="c", model="m", wanted={}, processes=routers, crashes=[], complete=True, controller_pid=1
    )
    assert admin_doors(status) == ["h:3"]


def test_people_read_candidates_terms_belief_truth_and_the_alternative(doors: list[str]) -> None:
    text = explained(explain(doors, "one"))
    lines = text.splitlines()
    assert lines[0] == "one (my/one): 160 prompt tokens"
    assert "attempt 1: p0 and d0, because: remote" in text
    assert "the best alternative, p1 and d0, would have cost" in text
    assert "90.0 ms more" in text
    (chosen,) = [line.split() for line in lines if line.strip().startswith("->")]
    assert chosen[:4] == ["->", "p0", "d0", "0"]
    terms = [float(cell) for cell in chosen[4:]]
    assert sum(terms[:-1]) == pytest.approx(terms[-1], abs=0.3)
    (cached,) = [line.split() for line in lines if line.strip().startswith("cached tokens")]
    assert cached[-2:] == ["0", "32"]
    assert "?" in text, "what never came to be known is not shown as zero"


def test_the_command(doors: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "one", "--router", doors[1]) == 0
    assert "160 prompt tokens" in capsys.readouterr().out
    assert run("explain", "one", "--router", doors[1], "--json") == 0
    assert msgspec.json.decode(capsys.readouterr().out)["request_id"] == "one"
    assert run("explain", "one", "--router", doors[0]) == 1
    assert "no router remembers" in capsys.readouterr().err


def run(*words: str) -> int:
    return int(app(list(words), result_action="return_value"))
