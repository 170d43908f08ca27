import random

import pytest

from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind, Runner
from diptych.engine.limits import Limits
from diptych.engine.sim.pace import Pace
from diptych.engine.sim.runner import SimRunner
from diptych.engine.sim.timing import FittedTiming, StepShape
from diptych.messages import SamplingParams, WorkerStats
from loadgen.sim.measured import Sample, TimedRunner, fit, from_stats

TRUE = FittedTiming(5.0, 0.04, 1e-5, 8.0, 0.3, 2e-3)


def test_a_fit_finds_what_made_the_samples() -> None:
    rng = random.Random(0)
    shapes = [StepShape(((rng.randrange(500), rng.randint(1, 900)),), 0, 0) for _ in range(20)]
    shapes += [StepShape((), rows, rows * rng.randint(10, 900)) for rows in range(1, 20)]
    shapes += [StepShape(((0, 50),), 3, 900)]  # mixed: left out
    found = fit([Sample(shape, TRUE.step_ms(shape)) for shape in shapes])
    for name in FittedTiming.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_noise_makes_no_negative_times() -> None:
    shapes = [StepShape(((0, count),), 0, 0) for count in (10, 100, 200, 400)]
    decodes = [StepShape((), rows, 100 * rows) for rows in (1, 2, 3)]
    samples = [Sample(shape, 50.0 - i) for i, shape in enumerate([*shapes, *decodes])]
    found = fit(samples)
    assert min(getattr(found, name) for name in FittedTiming.__dataclass_fields__) >= 0


def test_an_engine_that_runs_can_be_measured_and_played() -> None:
    """A simulated engine stands in for a real one, on a clock that only its sleeping moves."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    inner: Runner = SimRunner(
        kv_cache_bytes=1 << 20,
        block_size=4,
        fingerprint="m",
        vocabulary=range(9),
        pace=Pace(TRUE, sleep=sleep, clock=lambda: now[0]),
    )
    timed = TimedRunner(inner, clock=lambda: now[0])
    engine = Engine(timed, Limits(256, 8, 4, 4_000), clock=lambda: now[0])
    for number, length in enumerate((900, 200, 50, 700)):
        sampling = SamplingParams(max_tokens=20 + number, seed=number)
        engine.add(EngineRequest(str(number), Kind.LOCAL, tuple(range(length)), sampling, b"k" * 32))
        while engine.scheduler.has_work:
            engine.step()
    found = fit(timed.samples)
    shape = StepShape(((0, 600),), 0, 0)
    assert found.step_ms(shape) == pytest.approx(TRUE.step_ms(shape), rel=0.01)
    assert found.step_ms(StepShape((), 1, 700)) == pytest.approx(TRUE.step_ms(StepShape((), 1, 700)), rel=0.01)
    rough = from_stats(engine.stats())
    assert rough.step_ms(StepShape((), 1, 700)) == pytest.approx(TRUE.step_ms(StepShape((), 1, 700)), rel=0.1)


def test_too_little_is_said_to_be_too_little() -> None:
    with pytest.raises(ValueError, match="3 of each"):
        fit([])
    with pytest.raises(ValueError, match="not computed"):
        from_stats(WorkerStats())
