"""Workloads by name, as a command line or an experiment file writes them:

sessions                               a generator with its defaults
sessions:turns=3..6,user=50~0.8        with parameters (see `generators`)
3*sessions+1*documents                 a mixture, by weight; each part is a class with figures of its own
mooncake:FILE  azure:FILE  bailian:FILE  burstgpt:FILE  sharegpt:FILE  log:FILE      recorded traffic
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from loadgen.traces.azure import read_azure
from loadgen.traces.bailian import read_bailian
from loadgen.traces.burstgpt import read_burstgpt
from loadgen.traces.mooncake import TraceRequest, read_mooncake
from loadgen.traces.request_log import read_request_log
from loadgen.traces.sharegpt import read_sharegpt
from loadgen.workloads.generators import GENERATORS, Generator
from loadgen.workloads.lengths import Lengths, parse_lengths
from loadgen.workloads.workload import Workload

READERS: dict[str, Callable[..., list[TraceRequest]]] = {
    "mooncake": read_mooncake,
    "azure": read_azure,
    "bailian": read_bailian,
    "burstgpt": read_burstgpt,
}


def make_workload(spec: str, num_requests: int | None, seed: int, tokenizer: str = "") -> Workload:
    """The workload that `spec` names, at most `num_requests` of it.

    Args:
        num_requests: needed by generators, which would never end.
        tokenizer: a tokenizer.json, with which the texts of ShareGPT are counted; estimated when empty.

    Raises:
        ValueError: the name or a parameter is not known, or the file is not of the format.
        OSError: the file cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "log":
        requests, labels = read_request_log(Path(rest), num_requests)
        return Workload(requests, labels, timed=True)
    if kind == "sharegpt":
        counted = {"count_tokens": _counter(tokenizer)} if tokenizer else {}
        requests = read_sharegpt(Path(rest), num_requests, **counted)
        return Workload(requests, [""] * len(requests), timed=False)
    if kind in READERS:
        requests = READERS[kind](Path(rest), limit=num_requests)
        return Workload(requests, [""] * len(requests), timed=True)
    if num_requests is None:
        raise ValueError(f"say how many requests of {spec!r}, or a rate and how long")
    return _generated(spec, num_requests, seed)


def parse_generators(spec: str) -> list[tuple[float, str, Generator]]:
    """(weight, label, generator) of each part of a mixture.

    Raises:
        ValueError: a name or a parameter is not known.
    """
    parts = []
    for part in spec.split("+"):
        weight, star, rest = part.rpartition("*")
        name, _, parameters = rest.partition(":")
        if name not in GENERATORS:
            known = ", ".join((*GENERATORS, *READERS, "sharegpt", "log"))
            raise ValueError(f"no workload {name!r}; there are {known}")
        parts.append((_weight(weight) if star else 1.0, name, _generator(name, parameters)))
    return parts


def _generated(spec: str, num_requests: int, seed: int) -> Workload:
    parts = parse_generators(spec)
    rng = np.random.default_rng(seed)
    weights = np.asarray([weight for weight, _, _ in parts])
    chosen = rng.choice(len(parts), num_requests, p=weights / weights.sum())
    ids = count()
    streams: list[Iterator[TraceRequest]] = []
    for index, (_, _, generator) in enumerate(parts):
        streams.append(iter(generator.make(int((chosen == index).sum()), rng, ids)))
    names = [name for _, name, _ in parts]
    labels = [f"{name} {index + 1}" if names.count(name) > 1 else name for index, name in enumerate(names)]
    return Workload([next(streams[index]) for index in chosen], [labels[index] for index in chosen], timed=False)


def _generator(name: str, parameters: str) -> Generator:
    kind = GENERATORS[name]
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}  # type: ignore[arg-type]  # all are structs
    fields: dict[str, Any] = {}
    for pair in filter(None, parameters.split(",")):
        key, equals, value = pair.partition("=")
        key = key.replace("-", "_")
        if not equals or key not in types:
            raise ValueError(f"{name}: {pair!r} is no parameter; they are {', '.join(types)}, as key=value")
        fields[key] = parse_lengths(value) if types[key] is Lengths else value
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None


def _weight(text: str) -> float:
    weight = float(text)
    if not weight > 0:
        raise ValueError(f"a weight is above 0, not {text}")
    return weight


def _counter(tokenizer: str) -> Callable[[str], int]:
    loaded = Tokenizer.from_file(tokenizer)
    return lambda text: len(loaded.encode(text, add_special_tokens=False))
