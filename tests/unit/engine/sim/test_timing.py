import csv
from importlib.resources import files

import pytest

from diptych.engine.interface import Draw, Row
from diptych.engine.sim.fits import deployment, deployments
from diptych.engine.sim.timing import FittedTiming, FixedTiming, StepShape, TimingModel, shape_of
from diptych.messages import SamplingParams

SAMPLING = SamplingParams(max_tokens=9, seed=1)
FITTED = FittedTiming(13.0, 0.05, 1.4e-6, 15.0, 0.03, 2.6e-5, 1.1, 0.035)


def test_shape_tells_prompts_from_completions() -> None:
    first, later = Draw(0, 0, SAMPLING, (), ()), Draw(0, 3, SAMPLING, (), ())
    rows = [
        Row(0, [1], 10, [0], [later]),  # decodes
        Row(1, [1, 2, 3], 20, [0], [later, later, later], num_drafted=2),  # decodes, and guesses ahead
        Row(2, [1, 2, 3], 0, [0], []),  # a chunk
        Row(3, [1], 7, [0], [first]),  # the last token of a prompt
        Row(4, [1, 2], 0, [0], [later]),  # computed again after it yielded
    ]
    assert shape_of(rows) == StepShape(((0, 3), (7, 1), (0, 2)), 2, 11 + 23)


@pytest.mark.parametrize("model", [FITTED, FixedTiming(100.0, 25.0)])
def test_a_run_of_steps_is_its_steps(model: TimingModel) -> None:
    each = [model.step_ms(StepShape((), 7, 900 + 7 * step)) for step in range(20)]
    assert model.decode_run_ms(7, 900, 20) == each


def test_chunks_of_a_prompt_cost_its_whole_and_a_base_each() -> None:
    whole = FITTED.step_ms(StepShape(((0, 3_000),), 0, 0))
    parts = [FITTED.step_ms(StepShape(((start, 1_000),), 0, 0)) for start in (0, 1_000, 2_000)]
    assert sum(parts) - whole == pytest.approx(2 * (13.0 + 1.1))


def test_fixed_is_fixed() -> None:
    model = FixedTiming(100.0, 25.0, prefill_us_per_token=10.0)
    assert model.step_ms(StepShape((), 3, 99)) == 25.0
    assert model.step_ms(StepShape(((0, 500), (0, 500)), 3, 99)) == 110.0
    with pytest.raises(ValueError, match="above 0"):
        FixedTiming(0.0, 1.0)


def test_the_tables_say_where_they_come_from_and_hold_together() -> None:
    for name in ("fits.csv", "models.csv"):
        text = (files("diptych.engine.sim") / name).read_text()
        assert text.startswith("#")
        assert "licence" in text or "Apache-2.0" in text
    known = deployments()
    assert len({each.name for each in known}) == len(known) >= 8
    for each in known:
        assert each.kv_tokens > 32_000
        decode_64 = each.timing.step_ms(StepShape((), 64, 64 * 2_048))
        assert 4 < each.timing.step_ms(StepShape((), 1, 2_048)) < decode_64 < 60


def test_an_unknown_deployment_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="Qwen/Qwen3-8B h100_sxm TP1"):
        deployment("Qwen/Qwen3-8B", "h100_sxm", 2)


# Mixed steps measured on H100 SXM, from aiconfigurator 0.12 (Apache-2.0): chunk, rows, context a row, ms.
MIXED = """model,tp,chunk,rows,context,ms
meta-llama/Meta-Llama-3.1-8B,1,256,32,4352,15.325
meta-llama/Meta-Llama-3.1-8B,1,2048,64,4352,58.081
meta-llama/Meta-Llama-3.1-8B,1,8192,128,4352,212.905
meta-llama/Meta-Llama-3.1-70B,4,512,32,4352,43.937
meta-llama/Meta-Llama-3.1-70B,4,1024,64,4352,80.847
meta-llama/Meta-Llama-3.1-70B,4,2048,128,4352,158.336"""


def test_mixed_steps_are_near_measured_ones() -> None:
    errors = []
    for row in csv.DictReader(MIXED.splitlines()):
        rows = int(row["rows"])
        shape = StepShape(((0, int(row["chunk"])),), rows, rows * int(row["context"]))
        model = deployment(row["model"], "h100_sxm", int(row["tp"])).timing
        errors.append(abs(model.step_ms(shape) / float(row["ms"]) - 1))
    assert sum(errors) / len(errors) < 0.10
    assert max(errors) < 0.21
