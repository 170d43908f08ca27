"""What an experiment's file does not say and its figures depend on: the content of the files that it names, the
software, and whose model is measured. Noted when a folder is begun, and held against what is there when it goes on.

Does not know a remote cluster's commit, nor whether a model of the same name has other weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

import diptych
from loadgen.experiment.software import commit
from loadgen.experiment.spec import PLACEHOLDERS, Experiment
from loadgen.workloads.spec import READERS


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Empty: not known, or none."""

    version: str = ""  # of this software
    commit: str = ""  # of a checkout, and "+" and a digest of what was changed in it
    files: dict[str, str] = {}  # SHA-256 of recorded traffic and the tokenizer, by what the experiment calls them
    model: str = ""  # as the server lists it
    cluster: str = ""  # its name, of one that somebody else started

    def differences(self, now: Origin) -> list[str]:
        """What is not as it was, in words. What was not known, or is not known now, differs from nothing."""
        said = []
        for name, was, found in (
            ("the software's version", self.version, now.version),
            ("the software's commit", self.commit, now.commit),
            ("the served model", self.model, now.model),
            ("the cluster", self.cluster, now.cluster),
        ):
            if was and found and was != found:
                said.append(f"{name} was {was} and is {found}")
        changed = [name for name, was in self.files.items() if now.files.get(name, was) != was]
        return said + [f"the content of {name} has changed" for name in changed]

    def joined(self, now: Origin) -> Origin:
        """With what is known only now."""
        known = {name: getattr(self, name) or getattr(now, name) for name in ("version", "commit", "model", "cluster")}
        return Origin(files={**now.files, **self.files}, **known)


def origin_of(experiment: Experiment) -> Origin:
    """As far as it is known before anything is started.

    Raises:
        OSError: a file that the experiment names cannot be read.
    """
    files = {name: _sha256(Path(path)) for name, path in _files(experiment)}
    return Origin(version=diptych.__version__, commit=commit(), files=files)


def _files(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Each with what it is called in a message."""
    what = experiment.workload.what
    cells = experiment.sweep.made()
    for spec in dict.fromkeys(what.format(**{name: getattr(cell, name) for name in PLACEHOLDERS}) for cell in cells):
        kind, _, path = spec.partition(":")
        if kind in READERS or kind in ("log", "sharegpt"):
            yield spec, path
    if experiment.workload.tokenizer:
        yield f"the tokenizer {experiment.workload.tokenizer}", experiment.workload.tokenizer


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
