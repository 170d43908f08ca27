"""What a router says of its placement is held against what was to be measured."""

from __future__ import annotations

import httpx
import pytest

from loadgen.experiment.placement import Placement, ask_placement
from loadgen.experiment.served import Served
from loadgen.experiment.shape import Misfit, Shape, SystemUnavailable

URL = "http://router"


@pytest.mark.parametrize(
    ("said", "shape", "words"),
    [
        (Placement("min-ttft", "auto"), Shape(prefill=1, decode=1), ""),
        (Placement("min-ttft", "auto"), Shape(prefill=0, decode=2, remote_prefill="never"), ""),
        (Placement("min-ttft", "prefer"), Shape(prefill=0, decode=2), ""),  # without a pair it decides the same
        (Placement("least-load", "auto"), Shape(prefill=1, decode=1), "places by least-load, .* measure min-ttft"),
        (Placement("min-ttft", "auto"), Shape(prefill=0, decode=2, policy="least-load"), "measure least-load"),
        (Placement("min-ttft", "never"), Shape(prefill=1, decode=1), "remote_prefill 'never', .* measure 'auto'"),
        (Placement("min-ttft", "auto"), Shape(prefill=1, decode=1, remote_prefill="always"), "measure 'always'"),
        (Placement("min-ttft", "always"), Shape(prefill=0, decode=2), "remote_prefill 'always'"),
        (Placement(), Shape(prefill=1, decode=1), "does not say by which policy"),
    ],
)
def test_a_router_is_what_was_to_be_measured_or_the_message_says_why_not(
    said: Placement, shape: Shape, words: str
) -> None:
    if not words:
        said.check(shape, URL)
        return
    with pytest.raises(Misfit, match=words):
        said.check(shape, URL)


async def asked(answer: httpx.Response) -> Placement:
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer)) as http:
        return await ask_placement(http, URL)


async def test_a_router_also_says_it_while_it_is_not_healthy() -> None:
    details = {"decode_workers": 2, "policy": "min-ttft", "remote_prefill": "auto", "degraded": []}
    for status in (200, 503):
        answer = httpx.Response(status, json={"healthy": status == 200, "details": details})
        assert await asked(answer) == Placement("min-ttft", "auto")
    strangers = httpx.Response(200, json={"healthy": True, "details": {"decode_workers": 2}})
    assert await asked(strangers) == Placement()


async def test_what_is_no_router_is_explained() -> None:
    no_utf8 = httpx.Response(200, content=b'{"details": {"policy": "\xff"}}')
    for answer in (httpx.Response(200, text="pong"), httpx.Response(200, json={"details": 3}), no_utf8):
        with pytest.raises(SystemUnavailable, match="router/health does not say how"):
            await asked(answer)


async def test_a_system_is_asked_whenever_it_takes_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    class System:
        async def shape(self, shape: Shape) -> str:
            return URL

        async def close(self) -> None:
            pass

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer k"
        if request.url.path == "/health":
            return httpx.Response(200, json={"details": {"policy": "least-load", "remote_prefill": "auto"}})
        return httpx.Response(200, json={"data": [{"id": "m"}]})

    client = httpx.AsyncClient

    def mocked(headers: dict[str, str], **_: object) -> httpx.AsyncClient:
        return client(headers=headers, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(httpx, "AsyncClient", mocked)
    served = Served(System(), lambda: None, {"authorization": "Bearer k"})
    assert await served.shape(Shape(prefill=0, decode=2, policy="least-load")) == (URL, "m")
    with pytest.raises(Misfit, match="places by least-load"):
        await served.shape(Shape(prefill=0, decode=2))
