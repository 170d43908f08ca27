"""An experiment's folder: what was asked, and one file for each run that is over, written whole or not at all.

experiment.json       what was asked, and of what it is measured, by which a continuation is recognised
runs/KEY-sSEED.json   a `CellRun`; beside it the records of its requests
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import msgspec

from loadgen.experiment.cells import Cell
from loadgen.experiment.origin import Origin
from loadgen.experiment.spec import Experiment, SpecError
from loadgen.experiment.use import Use
from loadgen.report.result import RunResult

SCHEMA = "loadgen.experiment.v1"
STATE = "experiment.json"


class CellRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one cell."""

    cell: Cell
    seed: int
    result: RunResult
    use: Use | None = None  # of the phases over time
    attempts: int = 1


class State(msgspec.Struct, frozen=True, kw_only=True):
    schema: str = SCHEMA
    experiment: Experiment
    salt: int  # of prompts
    started_at_s: float  # unix
    origin: Origin | None = None  # None: nothing was measured yet, or by an earlier version


class ResultFolder:
    """Open it with `open_folder`."""

    def __init__(self, path: Path, state: State) -> None:
        self.path = path
        self.state = state
        self._runs = path / "runs"
        self._runs.mkdir(exist_ok=True)

    def stamp(self, now: Origin) -> None:
        """Note what is going to be measured, at first, or hold it against what was.

        Raises:
            SpecError: something is not as it was, or it was not noted, so that other software measured the runs that
                are there; the message says what to do.
        """
        was = self.state.origin
        if was is None and any(self._runs.glob("*-s*.json")):
            raise SpecError(
                f"{self.path} was begun by an earlier version of this software, which did not note what it measured; "
                "results of two versions are not mixed. Give another folder with --out; --report-only still reports "
                "what is there"
            )
        if was is not None and (differ := was.differences(now)):
            raise SpecError(
                f"{self.path} was begun with something else: {'; '.join(differ)}. Results of two experiments are not "
                "mixed. Put it back as it was to go on, or give another folder with --out"
            )
        noted = now if was is None else was.joined(now)
        if noted != was:
            self.state = msgspec.structs.replace(self.state, origin=noted)
            _write_state(self.path, self.state)

    def has(self, cell: Cell, seed: int) -> bool:
        return self._file(cell, seed).exists()

    def records_path(self, cell: Cell, seed: int) -> Path:
        return self._file(cell, seed).with_suffix(".requests.jsonl")

    def write(self, run: CellRun) -> None:
        write_whole(self._file(run.cell, run.seed), msgspec.json.encode(run))

    def runs(self) -> list[CellRun]:
        """In the order of the sweep's cells and seeds; those that are not there yet are left out."""
        made = self.state.experiment
        files = [self._file(cell, seed) for cell in made.sweep.made() for seed in made.seeds]
        return [msgspec.json.decode(file.read_bytes(), type=CellRun) for file in files if file.exists()]

    def _file(self, cell: Cell, seed: int) -> Path:
        return self._runs / f"{cell.key}-s{seed}.json"


def open_folder(path: Path, experiment: Experiment) -> ResultFolder:
    """A new folder, or one in which this very experiment was begun.

    Raises:
        SpecError: another experiment was begun there.
        OSError: it cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True)
    file = path / STATE
    if not file.exists():
        state = State(experiment=experiment, salt=time.time_ns() >> 20, started_at_s=time.time())
        _write_state(path, state)
        return ResultFolder(path, state)
    state = read_state(path)
    if is_continued_by(state.experiment, experiment):
        state = msgspec.structs.replace(state, experiment=experiment)
        _write_state(path, state)
    elif digest(state.experiment) != digest(experiment):
        differ = [
            name
            for name in experiment.__struct_fields__
            if msgspec.json.encode(getattr(state.experiment, name)) != msgspec.json.encode(getattr(experiment, name))
        ]
        raise SpecError(
            f"{path} was begun with another {', '.join(differ)}; results of two experiments are not mixed. Put the "
            "file back as it was to go on, or give another folder with --out"
        )
    return ResultFolder(path, state)


def is_continued_by(begun: Experiment, experiment: Experiment) -> bool:
    """The same but for more seeds, which come after those there were: what was measured stays what it is."""
    known = begun.seeds
    more = len(experiment.seeds) > len(known) and experiment.seeds[: len(known)] == known
    return more and digest(msgspec.structs.replace(experiment, seeds=known)) == digest(begun)


def read_state(path: Path) -> State:
    """
    Raises:
        SpecError: the folder holds no experiment.
    """
    try:
        state = msgspec.json.decode((path / STATE).read_bytes(), type=State)
    except FileNotFoundError:
        raise SpecError(f"{path} holds no experiment: there is no {STATE} in it") from None
    except ValueError as error:  # not JSON, of another shape, or not UTF-8
        raise SpecError(f"{path / STATE} is not an experiment of this version: {error}") from None
    if state.schema != SCHEMA:
        raise SpecError(f"{path / STATE} has schema {state.schema!r}; this reads {SCHEMA}")
    return state


def digest(experiment: Experiment) -> str:
    return hashlib.blake2b(msgspec.json.encode(experiment, order="sorted"), digest_size=16).hexdigest()


def _write_state(path: Path, state: State) -> None:
    write_whole(path / STATE, msgspec.json.format(msgspec.json.encode(state), indent=2))


def write_whole(path: Path, content: bytes) -> None:
    """A reader, or a run that goes on later, sees all of it or nothing."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)
