import io

from diptych.telemetry import make_logger
from diptych.worker.loading import SAY_EVERY_S, LoadProgress


def test_a_line_now_and_then() -> None:
    stream, now = io.StringIO(), 100.0
    progress = LoadProgress(make_logger("worker", stream=stream), lambda: now)
    for step in range(10):
        progress("loading weights", step / 10)
        now += SAY_EVERY_S / 4
    lines = stream.getvalue().splitlines()
    assert [line.split("percent=")[1].split()[0] for line in lines] == ["40", "80"]
    assert 'stage="loading weights"' in lines[0]
