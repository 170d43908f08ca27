"""An experiment as its file says it: typed, and checked as a whole before anything starts.

name, backend, seeds        what it is called, what is measured, and how often
[cluster]                   model, workers' processors, options of the processes
[sweep]                     what varies: lists, every combination of which is a cell
[workload] [arrivals]       what is sent, and when
[slo]                       limits of goodput
[sim]                       step times, for backend = "sim"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.experiment.cells import LOADS, Cell, Mode, grid
from loadgen.experiment.tables import ArrivalsSpec, ClusterSpec, SimSpec, Slo, WorkloadSpec

Backend = Literal["cluster", "running", "sim"]
PLACEHOLDERS = ("input_tokens", "output_tokens", "prefix_share")


class SpecError(ValueError):
    """The experiment cannot be run as it is written; the message says where, why and what to write instead."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lists of values. `cells` gives some of them by hand, e.g. pairs of prefill and decode."""

    mode: list[Mode] = msgspec.field(default_factory=lambda: ["disaggregated"])
    prefill: list[int] = msgspec.field(default_factory=lambda: [1])
    decode: list[int] = msgspec.field(default_factory=lambda: [1])
    workers: int | None = None  # keep only cells with so many in all
    policy: list[str] = msgspec.field(default_factory=lambda: ["min-ttft"])
    remote_prefill: list[str] = msgspec.field(default_factory=lambda: ["auto"])
    max_batch_tokens: list[int] = msgspec.field(default_factory=lambda: [512])
    input_tokens: list[int | str] = []  # lengths as in --workload: 512, "100..900", "600~0.5"
    output_tokens: list[int | str] = []
    prefix_share: list[float] = []
    rate: list[float] = []
    rate_per_worker: list[float] = []
    input_tokens_per_s: list[float] = []
    concurrency: list[int] = []
    speedup: list[float] = []
    cells: list[dict[str, Any]] = []

    def __post_init__(self) -> None:
        given = [name for name in LOADS if getattr(self, name) or any(name in cell for cell in self.cells)]
        if len(given) != 1:
            raise ValueError(f"the load is one of {', '.join(LOADS)}; here {' and '.join(given) or 'none'} is given")
        for name in LOADS:
            if any(value <= 0 for value in getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; a load is above 0")
        if any(not 0 <= share <= 1 for share in self.prefix_share):
            raise ValueError(f"prefix_share is {self.prefix_share}; a share is from 0 to 1")
        for number, cell in enumerate(self.cells):
            if unknown := set(cell) - set(Cell.__struct_fields__):
                raise ValueError(f"cells[{number}] has no {', '.join(sorted(unknown))}; see the axes of [sweep]")

    def made(self) -> list[Cell]:
        """
        Raises:
            ValueError: a cell by hand has a value of the wrong kind, or no cell is left.
        """
        axes = {name: values for name in Cell.__struct_fields__ if (values := getattr(self, name))}
        cells = grid(axes, self.cells, self.workers)
        for cell in cells:
            cell.shape  # noqa: B018  # refuses what no cluster can be
            if cell.input_tokens_per_s is not None and not isinstance(cell.input_tokens, int):
                raise ValueError(
                    "input_tokens_per_s needs input_tokens that are plain numbers: the rate follows from them"
                )
        if not cells:
            raise ValueError(f"no cell has {self.workers} workers; change workers, prefill or decode")
        return cells


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    sweep: Sweep
    backend: Backend = "cluster"
    about: str = ""  # shown in the report
    seeds: list[int] = msgspec.field(default_factory=lambda: [1, 2, 3])
    shuffle_seed: int = 0  # of the order of cells
    cluster: ClusterSpec = ClusterSpec()
    workload: WorkloadSpec = WorkloadSpec()
    arrivals: ArrivalsSpec
    slo: Slo = Slo()
    sim: SimSpec = SimSpec()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; give at least one, each once")
        used, given = self.workload.names, {name for name in PLACEHOLDERS if self._has(name)}
        for name in sorted(used - set(PLACEHOLDERS)):
            raise ValueError(f"workload.what has {{{name}}}; there are {', '.join(PLACEHOLDERS)}")
        for name in sorted(used - given):
            raise ValueError(f"workload.what has {{{name}}}, but sweep.{name} is empty: give it at least one value")
        for name in sorted(given - used):
            raise ValueError(f"sweep.{name} changes nothing: workload.what does not have {{{name}}}")

    def _has(self, name: str) -> bool:
        return bool(getattr(self.sweep, name)) or any(name in cell for cell in self.sweep.cells)


def read_experiment(path: Path, backend: Backend | None = None) -> Experiment:
    """
    Args:
        backend: in place of the file's.

    Raises:
        SpecError: the file cannot be read, or something in it is unknown, missing or wrong.
    """
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not TOML: {error}") from None
    try:
        made = msgspec.convert(described | ({"backend": backend} if backend else {}), Experiment)
        made.sweep.made()
    except (ValueError, msgspec.ValidationError) as error:
        raise SpecError(f"{path}: {_in_toml(str(error))}") from None
    return made


def _in_toml(message: str) -> str:
    """msgspec says "… - at `$.sweep.rate`"; the user knows no dollar."""
    text, separator, place = message.rpartition(" - at `$")
    return f"{place.strip('.`')}: {text}" if separator and place.strip(".`") else text if separator else message
