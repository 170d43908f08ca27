"""The child's side of `peers.py`."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from benchmarks.engine.peers import READY
from benchmarks.engine.workload import Measured


def take_stdout() -> TextIO:
    """The pipe for answers. Whatever libraries print from here on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve(measured: Measured, answers: TextIO) -> None:
    """Answer measurements until stdin ends."""
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        kind, number = line.split()
        measure = {"prefill": measured.prefill, "decode": measured.decode}[kind]
        print(measure(int(number)), file=answers, flush=True)
