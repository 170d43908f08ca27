"""The cells of a sweep: which there are, and in which order they are measured. Pure.

Order decides what drift of the machine can do to a result: all seeds of one cell in a row would give that cell whatever
the machine did then. So every seed measures all cells once; inside it starts of the cluster, shapes and cells of a
shape are shuffled, and each seed begins with the shape that the one before ended with (A B, B A, …), which halves the
changes of shape and puts each shape as often early as late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import product
from random import Random
from typing import Literal, TypeVar

import msgspec

from loadgen.experiment.shape import Shape

T = TypeVar("T")
Mode = Literal["disaggregated", "colocated"]
LOADS = ("rate", "rate_per_worker", "input_tokens_per_s", "concurrency", "speedup")  # a sweep varies one of them


class Cell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One configuration and one load. A colocated cell has as many workers as its pair, and all of them decode."""

    mode: Mode
    prefill: int
    decode: int
    policy: str
    remote_prefill: str
    max_batch_tokens: int
    input_tokens: int | str | None = None
    output_tokens: int | str | None = None
    prefix_share: float | None = None
    rate: float | None = None  # requests a second
    rate_per_worker: float | None = None
    input_tokens_per_s: float | None = None  # the rate follows from the length of prompts
    concurrency: int | None = None
    speedup: float | None = None  # of a trace's own times

    @property
    def shape(self) -> Shape:
        return Shape(
            prefill=self.prefill,
            decode=self.decode,
            policy=self.policy,
            remote_prefill=self.remote_prefill,
            max_batch_tokens=self.max_batch_tokens,
        )

    @property
    def num_workers(self) -> int:
        return self.prefill + self.decode

    @property
    def load_name(self) -> str:
        return next(name for name in LOADS if getattr(self, name) is not None)

    @property
    def load(self) -> float:
        return float(getattr(self, self.load_name))

    @property
    def requests_per_s(self) -> float | None:
        """None of a closed loop and of a trace's own times."""
        if self.rate_per_worker is not None:
            return self.rate_per_worker * self.num_workers
        if self.input_tokens_per_s is not None:
            return self.input_tokens_per_s / float(self.input_tokens or 1)
        return self.rate

    @property
    def key(self) -> str:
        """Of file names: says all that the cell is, by a hash where a file name cannot."""
        parts = [f"{self.prefill}P{self.decode}D", self.policy, self.remote_prefill, f"chunk{self.max_batch_tokens}"]
        short = {"input_tokens": "in", "output_tokens": "out", "prefix_share": "share"}
        for name in (*short, *LOADS):
            if (value := getattr(self, name)) is not None:
                parts.append(f"{short.get(name, name)}{value}")
        whole = "-".join(parts)
        name = "".join(char if char.isalnum() or char in ".-_" else "_" for char in whole)
        return name if name == whole else f"{name}-{blake2b(whole.encode(), digest_size=4).hexdigest()}"


def colocated(cell: Cell) -> Cell:
    """The same workers, each of which computes prompts and decodes."""
    return msgspec.structs.replace(cell, mode="colocated", prefill=0, decode=cell.num_workers, remote_prefill="never")


def grid(axes: dict[str, Sequence[object]], overrides: Iterable[dict[str, object]], workers: int | None) -> list[Cell]:
    """Every combination, once.

    Args:
        axes: values of each field of `Cell` that has any.
        overrides: each replaces some axes by one value; without any the axes are taken as they are.
        workers: of a disaggregated cell in all; None: any number.
    """
    found: dict[Cell, None] = {}
    for override in list(overrides) or [{}]:
        lists = {name: [override[name]] if name in override else values for name, values in axes.items()}
        lists |= {name: [value] for name, value in override.items() if name not in axes}
        for values in product(*lists.values()):
            cell = msgspec.convert(dict(zip(lists, values, strict=True)), Cell)
            if workers is None or cell.num_workers == workers:
                found[colocated(cell) if cell.mode == "colocated" else cell] = None
    return list(found)


def in_order(cells: Sequence[Cell], seeds: Sequence[int], shuffle_seed: int) -> list[tuple[Cell, int]]:
    """Every cell with every seed."""
    rng = Random(shuffle_seed)
    ordered: list[tuple[Cell, int]] = []
    last: Shape | None = None
    for seed in seeds:
        chosen = list(_shuffled(cells, rng, last))
        ordered += [(cell, seed) for cell in chosen]
        last = chosen[-1].shape if chosen else None
    return ordered


def _shuffled(cells: Sequence[Cell], rng: Random, first: Shape | None) -> Iterator[Cell]:
    """Cells of one shape follow each other, and shapes between which a cluster need not be started again."""
    starts: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        starts.setdefault(_start(cell.shape), []).append(cell)
    for key in _first(rng.sample(list(starts), len(starts)), _start(first) if first else None):
        shapes: dict[Shape, list[Cell]] = {}
        for cell in sorted(starts[key], key=lambda cell: str(cell.shape)):
            shapes.setdefault(cell.shape, []).append(cell)
        for shape in _first(rng.sample(list(shapes), len(shapes)), first):
            yield from rng.sample(shapes[shape], len(shapes[shape]))


def _start(shape: Shape) -> tuple[str, str, int]:
    return shape.policy, shape.router_remote_prefill, shape.max_batch_tokens


def _first(values: list[T], value: T | None) -> list[T]:
    return sorted(values, key=lambda each: each != value)  # stable: the others stay shuffled
