"""What `diptych up` says about a cluster that does not become whole, with a client's key and without."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from deploy.readiness import KEY_VARIABLE, delay, unready
from deploy.reconcile import Health, Kind, State
from deploy.status import ClusterStatus, ProcessStatus

KEY = "sk-diptych-key"
REASON = "the transfer agent at 127.0.0.1:5 did not answer"


def process(kind: Kind, state: State = State.RUNNING, health: Health = Health.OK) -> ProcessStatus:
    said = (
        {"router_id": "router-1", "http_address": "127.0.0.1:1"} if kind is Kind.ROUTER else {"worker_id": f"{kind}-1"}
    )
    return ProcessStatus(
        id=f"{kind}-0",
        kind=kind,
        state=state,
        health=health,
        log_path="",
        record=msgspec.Raw(msgspec.json.encode(said) if state is State.RUNNING else b"null"),
    )


def status(*processes: ProcessStatus) -> ClusterStatus:
    return ClusterStatus(
        name="c",
        model="m",
        wanted=dict.fromkeys(Kind, 1),
        processes=list(processes),
        crashes=[],
        complete=False,
        controller_pid=1,
    )


WHOLE = status(*(process(kind) for kind in Kind))


class Door:
    """Answers as a router's does, and hides what it hides from who has no key."""

    def __init__(self) -> None:
        self.healthy = True
        self.answer: dict[str, Any] = {"reasons": [], "details": {"prefill_workers": 1, "decode_workers": 1}}

    def get(self, _url: str, headers: dict[str, str], **_settings: object) -> httpx.Response:
        answer = self.answer
        if headers.get("Authorization") != f"Bearer {KEY}":
            probing = dict.fromkeys(answer["details"].get("probing", ()), "")
            answer = {"reasons": [], "details": answer["details"] | {"probing": probing}}
        return httpx.Response(200 if self.healthy else 503, json=answer)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    made = Door()
    monkeypatch.setattr(httpx, "get", made.get)
    return made


def test_a_whole_cluster_waits_for_nothing(door: Door) -> None:
    assert unready(WHOLE) == delay(WHOLE) == ""


def test_an_unhealthy_door_is_quoted_to_who_has_a_key_and_the_others_are_told_so(door: Door) -> None:
    door.healthy = False
    door.answer["reasons"] = [f"no request went end to end lately; the last canary: {REASON}"]
    assert REASON in unready(WHOLE, KEY)
    assert KEY_VARIABLE not in unready(WHOLE, KEY)
    hidden = unready(WHOLE)
    assert "HTTP 503" in hidden
    assert KEY_VARIABLE in hidden


def test_who_has_not_proved_itself_is_named(door: Door) -> None:
    door.answer["details"] = {"prefill_workers": 1, "decode_workers": 0, "probing": {"decode-1": REASON}}
    assert f"0 of 1 decode workers serve; no canary has gone through decode-1: {REASON}" in unready(WHOLE, KEY)
    assert unready(WHOLE).endswith("0 of 1 decode workers serve; no canary has gone through decode-1")


def test_processes_that_are_late_are_named_without_asking_a_door_that_is_not_open() -> None:
    late = status(process(Kind.PREFILL, State.STARTING), process(Kind.DECODE, health=Health.SUSPECT))
    said = delay(status(*late.processes, process(Kind.ROUTER, State.STARTING)))
    assert said == "prefill-0 is starting; decode-1 is suspect; router-0 is starting"
    assert delay(late).endswith("router: 0 of 1 are there")


def test_a_door_that_cannot_be_read_is_no_crash(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read" not in delay(WHOLE)
    monkeypatch.setattr(httpx, "get", lambda *_a, **_k: httpx.Response(200, text="<html>"))
    assert "http://127.0.0.1:1/health cannot be read" in delay(WHOLE)
    monkeypatch.undo()
    assert "http://127.0.0.1:1/health cannot be read" in delay(WHOLE)  # nobody listens there
