from __future__ import annotations

from loadgen.client.config import Progress


def test_processes_add_up_and_say_what_failed() -> None:
    one = Progress(planned=5, sent=4, ended=3, failures={"http_400": 2})
    other = Progress(planned=6, sent=6, ended=6, failures={"http_400": 1, "timeout": 1})
    assert str(one + other) == "10/11 sent, 9 ended, 4 failed (http_400 3, timeout 1)"


def test_nothing_failed() -> None:
    assert str(Progress(planned=2, sent=1)) == "1/2 sent, 0 ended, 0 failed"
