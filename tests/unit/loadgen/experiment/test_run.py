"""An experiment runs each cell once, goes on where it stopped, and never mixes two experiments."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments import Played, a_result, experiment

from loadgen.experiment.eta import Forecast, in_words
from loadgen.experiment.results import STATE, open_folder
from loadgen.experiment.run import Interrupted, Runner
from loadgen.experiment.shape import Shape, SystemUnavailable, misfit
from loadgen.experiment.spec import SpecError
from loadgen.report.result import STOPPED


def silent(_text: str) -> None:
    pass


async def test_all_cells_are_measured_and_kept(tmp_path: Path) -> None:
    made = experiment()
    folder, backend = open_folder(tmp_path, made), Played()
    runner = Runner(folder, backend, silent)
    ordered = runner.ordered
    await runner.run()
    assert len(backend.configs) == len(ordered) == len(folder.runs()) == 3 * len(made.sweep.made())
    assert [(config.name, config.seed) for config in backend.configs] == [(cell.key, seed) for cell, seed in ordered]
    assert backend.closed == 1
    assert all(run.attempts == 1 and run.result.valid for run in folder.runs())
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")]


async def test_a_continuation_measures_only_what_is_missing(tmp_path: Path) -> None:
    made = experiment()
    first = Played(fail_after=5)
    with pytest.raises(KeyboardInterrupt):
        await Runner(open_folder(tmp_path, made), first, silent).run()
    assert first.closed == 1
    folder, second, said = open_folder(tmp_path, made), Played(), []
    assert len(folder.runs()) == 5
    await Runner(folder, second, said.append).run()
    total = 3 * len(made.sweep.made())
    assert said[0] == f"5 of {total} runs are there already"
    assert len(second.configs) == total - 5
    assert not {config.name + str(config.seed) for config in first.configs} & {
        config.name + str(config.seed) for config in second.configs
    }
    prompts = [{(config.salt, config.seed) for config in each.configs} for each in (first, second)]
    assert prompts[0].isdisjoint(prompts[1])


async def test_another_experiment_is_refused(tmp_path: Path) -> None:
    open_folder(tmp_path, experiment())
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(SpecError, match=r"begun with another seeds.*--out"):
        open_folder(tmp_path, experiment(seeds=[1, 3]))
    assert (tmp_path / STATE).read_bytes() == before


async def test_more_seeds_continue_an_experiment(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, experiment(seeds=[1]))
    await Runner(folder, Played(), silent).run()
    salt = folder.state.salt
    more, backend = open_folder(tmp_path, experiment(seeds=[1, 2])), Played()
    await Runner(more, backend, silent).run()
    assert {config.seed for config in backend.configs} == {2}
    assert more.state.salt == salt
    assert open_folder(tmp_path, experiment(seeds=[1, 2])).runs() == more.runs()


async def test_a_generator_that_fell_behind_gets_one_more_chance(tmp_path: Path) -> None:
    made = experiment(seeds=[1])
    folder, said = open_folder(tmp_path, made), []
    backend = Played(late=3)  # the first cell both times, the second cell once
    await Runner(folder, backend, said.append).run()
    assert len(backend.configs) == len(made.sweep.made()) + 2
    by_attempts = sorted((run.attempts, run.result.valid) for run in folder.runs())
    assert by_attempts[-2:] == [(2, False), (2, True)]
    assert sum("once more" in text for text in said) == 2
    assert len({config.salt for config in backend.configs}) == len(backend.configs)


async def test_nothing_is_kept_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    """The client swallows a cancellation to save what it has; an experiment has no use for that."""

    class Cut(Played):
        async def measure(self, *of):  # type: ignore[no-untyped-def]
            result, use = await super().measure(*of)
            return type(result)(
                **{name: getattr(result, name) for name in result.__struct_fields__}
                | {"valid": False, "invalid_because": [STOPPED]}
            ), use

    folder, backend = open_folder(tmp_path, experiment()), Cut()
    with pytest.raises(Interrupted):
        await Runner(folder, backend, silent).run()
    assert (len(backend.configs), folder.runs(), backend.closed) == (1, [], 1)


async def test_the_time_left_is_learnt(tmp_path: Path) -> None:
    now = [0.0]

    def tick(seconds: float) -> None:
        now[0] += seconds

    made, said = experiment(seeds=[1]), []
    backend = Played(tick=tick)  # shapes take 10 s, runs of 2 s take 4 s
    await Runner(open_folder(tmp_path, made), backend, said.append, clock=lambda: now[0]).run()
    left = [text.partition("about ")[2].partition(" left")[0] for text in said]
    shapes, runs = len(set(backend.shapes)), len(backend.configs)
    assert left[0] == in_words(1.3 * 0.95 * runs + 20 * shapes)  # nothing is known yet
    assert left[1] == in_words(4 * (runs - 1) + 10 * (shapes - 1))  # the first run and the first shape are over
    assert left[-1] == "4 s"


def test_a_forecast_counts_what_is_slow_for_what_it_is() -> None:
    forecast = Forecast()
    forecast.ran(10, 12)
    forecast.ran(20, 24)
    forecast.shaped(5)
    forecast.shaped(7)
    assert forecast.left_s([5, 5], 2) == pytest.approx(1.2 * 10 + 12)


@pytest.mark.parametrize(("seconds", "words"), [(4.4, "4 s"), (90, "90 s"), (600, "10 min"), (7500, "2 h 05 min")])
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("shape", "remote_share", "fits"),
    [
        (Shape(prefill=1, decode=1), 0.5, True),
        (Shape(prefill=1, decode=1), 0.0, True),  # the router may choose
        (Shape(prefill=1, decode=1), None, True),  # nobody says
        (Shape(prefill=1, decode=1, remote_prefill="always"), 0.0, False),
        (Shape(prefill=1, decode=1, remote_prefill="never"), 0.0, True),
        (Shape(prefill=1, decode=1, remote_prefill="never"), 0.1, False),
        (Shape(prefill=0, decode=2), 0.0, True),
        (Shape(prefill=0, decode=2), 0.1, False),
    ],
)
def test_what_remote_prefills_say_of_a_shape(shape: Shape, remote_share: float | None, fits: bool) -> None:
    assert (misfit(shape, remote_share) == "") is fits


async def test_a_cluster_that_does_not_do_what_a_cell_says_ends_the_experiment(tmp_path: Path) -> None:
    class Wrong(Played):
        async def measure(self, config, shape, records_path):  # type: ignore[no-untyped-def]
            return a_result(config, 50.0, remote=True), None

    folder = open_folder(tmp_path, experiment())
    with pytest.raises(SystemUnavailable, match=r"colocated .* were prefilled remotely"):
        await Runner(folder, Wrong(), silent).run()
    assert all(run.cell.prefill for run in folder.runs())
