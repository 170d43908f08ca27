"""Timing models as users name them, in a configuration, on a command line or in a file.

    fixed:prefill_ms=100,decode_ms=25     a step with a prompt takes 100 ms, any other 25; optionally
                                          prefill_us_per_token=20 on top
    fit:MODEL/GPU[/TP]                    of this folder's tables, e.g. fit:Llama-3.1-70B-Instruct-FP8/h100/4
    fitted:prefill_c0_ms=5.5,…            the closed forms of `FittedTiming` themselves; what is left out is 0
    measured:FILE                         a file that `python -m loadgen timing` wrote

Knows nothing about clocks or engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

from diptych.engine.sim.fits import Deployment, deployments
from diptych.engine.sim.timing import FittedTiming, FixedTiming, TimingModel

SCHEMA = "diptych.timing.v1"
MOST = 1e9  # of any number: eleven days in a step
KINDS = ("fixed", "fit", "fitted", "measured")


class TimingFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured timing model with where it came from, as JSON."""

    schema: str = SCHEMA
    timing: str  # "fitted:…"
    measured_at: str = ""  # UTC, ISO 8601
    source: dict[str, str | int | float] = {}  # what was measured, for people
    hop_ms: float | None = None  # client or worker to the next one, one way; None: not measured
    runs: list[str] = []  # that it was taken from: seed and salt of each, which no two runs share


def parse_timing(text: str) -> TimingModel:
    """
    Raises:
        ValueError: it is no timing model, a name or number is wrong, or the file cannot be used; says what there is.
    """
    kind, _, rest = text.partition(":")
    if kind == "fixed":
        return FixedTiming(**_numbers(text, rest, FixedTiming.__dataclass_fields__, {"prefill_ms", "decode_ms"}))
    if kind == "fitted":
        names = FittedTiming.__dataclass_fields__
        return FittedTiming(**dict.fromkeys(names, 0.0) | _numbers(text, rest, names, set()))
    if kind == "fit":
        return find_deployment(rest).timing
    if kind == "measured":
        return parse_timing(read_timing_file(Path(rest)).timing)
    raise ValueError(f"timing is {text!r}; it begins with {', '.join(f'{each}:' for each in KINDS)}")


def inlined(text: str) -> str:
    """The same timing model without the need for a file, so that it can be sent to another machine.

    Raises:
        ValueError: as `parse_timing`.
    """
    kind, _, rest = text.partition(":")
    parse_timing(text)
    return read_timing_file(Path(rest)).timing if kind == "measured" else text


def as_text(timing: FittedTiming) -> str:
    """What `parse_timing` reads back to the bit."""
    return "fitted:" + ",".join(f"{name}={value!r}" for name, value in asdict(timing).items())


def deployment_of(text: str) -> Deployment | None:
    """The deployment that a `fit:` names; None of other timing models."""
    kind, _, rest = text.partition(":")
    return find_deployment(rest) if kind == "fit" else None


def find_deployment(name: str) -> Deployment:
    """MODEL/GPU or MODEL/GPU/TP, in any case; the model with or without its owner, the GPU with or without its form.

    Raises:
        ValueError: the tables have none, or several; says which there are.
    """
    found = [each for each in deployments() if name.lower() in _names(each)]
    if len(found) == 1:
        return found[0]
    what = "several deployments are" if found else "no deployment is"
    known = ", ".join(f"{each.model}/{each.gpu}/{each.tensor_parallel}" for each in found or deployments())
    raise ValueError(f"{what} called {name!r}; there are: {known}")


def _names(each: Deployment) -> set[str]:
    models = {each.model, each.model.rpartition("/")[2]}
    gpus = {each.gpu, each.gpu.partition("_")[0]}
    short = {f"{model}/{gpu}".lower() for model in models for gpu in gpus}
    return short | {f"{name}/{each.tensor_parallel}" for name in short}


def _numbers(text: str, rest: str, known: Mapping[str, object], needed: set[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in rest.split(","):
        name, _, number = part.strip().partition("=")
        if name not in known:
            raise ValueError(f"timing {text!r} knows no {name!r}; it is {', '.join(known)}")
        if name in values:
            raise ValueError(f"timing {text!r} has {name} twice")
        try:
            values[name] = float(number)
        except ValueError:
            values[name] = math.nan
        if not 0 <= values[name] <= MOST:  # NaN is neither
            raise ValueError(f"timing {text!r}: {name} is {number!r}; it is a number from 0 to {MOST:g}")
    if missing := needed - values.keys():
        raise ValueError(f"timing {text!r} lacks {', '.join(sorted(missing))}")
    return values


def timing_file(text: str) -> TimingFile | None:
    """All that is known of a `measured:` one; None of other timing models.

    Raises:
        ValueError: as `read_timing_file`.
    """
    kind, _, rest = text.partition(":")
    return read_timing_file(Path(rest)) if kind == "measured" else None


def read_timing_file(path: Path) -> TimingFile:
    """
    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=TimingFile)
    except OSError as error:
        raise ValueError(f"timing file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no timing file: {error}") from None
    if found.schema != SCHEMA or not found.timing.startswith(("fixed:", "fitted:")):
        raise ValueError(f"{path} is no timing file of schema {SCHEMA}")
    return found
