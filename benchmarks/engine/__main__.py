"""Engine benchmark: `python -m benchmarks.engine MODEL_FOLDER`, or `make bench-engine`.

Measures the machine's own limits, our engine and whichever peers are installed, taking turns round by round, and prints
a table; the last line is one JSON object. The machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engine.machine import Machine
from benchmarks.engine.ours import BLOCK_SIZE, Ours
from benchmarks.engine.overhead import OverheadProbe
from benchmarks.engine.peers import MODULES, Peer, PeerError, installed
from benchmarks.engine.report import Round, summary, table
from benchmarks.engine.workload import BATCHES, CONTEXT, PREFILL_LENGTHS, Measured
from benchmarks.record import record
from deploy.model_store import DEFAULT_MODEL, resolve_model
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder
from diptych.model_spec import ModelSpec

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    args = _arguments()
    folder = ModelFolder(resolve_model(args.model, os.environ, _say))
    capacity = _kv_cache_bytes(folder.spec)
    runner = TorchRunner.load(
        folder, kv_cache_bytes=capacity, block_size=BLOCK_SIZE, device="cpu", threads=args.threads
    )
    _say(f"{folder.path}: {runner.attention_name}, {args.threads} thread(s)")
    ours, probe, machine = Ours(runner, folder.spec.max_context), OverheadProbe(folder, capacity), Machine()
    peers = _start_peers(args, folder.path)
    try:
        _rates(ours)  # warm
        rounds = [_round(index, ours, probe, machine, peers) for index in range(args.rounds)]
    finally:
        for peer in peers:
            peer.close()

    numbers = summary(rounds, folder.spec, runner.exact)
    if args.record:
        _say(f"recorded in {record(RESULTS, 'engine', numbers)}")
    print(table(numbers, [peer.name for peer in peers]))
    print(json.dumps(numbers))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns of everybody; medians are reported")
    parser.add_argument("--peers", nargs="*", choices=list(MODULES), help="default: the installed")
    parser.add_argument("--peers-python", default=sys.executable, help="the interpreter that has the peers installed")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp; without it llama.cpp is left out")
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args()


def _start_peers(args: argparse.Namespace, folder: Path) -> list[Peer]:
    peers = []
    for name in installed(args.peers_python) if args.peers is None else args.peers:
        model = args.gguf if name == "llama_cpp" else folder
        if model is None:
            _say(f"{name} is installed but left out: give its model with --gguf")
            continue
        try:
            peers.append(Peer(name, model, args.threads, args.peers_python))
        except PeerError as error:
            _say(f"{name} is left out: {error}")
    return peers


def _round(index: int, ours: Ours, probe: OverheadProbe, machine: Machine, peers: Sequence[Peer]) -> Round:
    _say(f"round {index + 1}")
    with torch.inference_mode():
        before = machine.sgemm_flops(), machine.gemv_bytes()
        rates = _rates(ours)
        after = machine.sgemm_flops(), machine.gemv_bytes()
    # The faster of two, so that a neighbour that came and went does not flatter the shares.
    turn = Round(max(before[0], after[0]), max(before[1], after[1]), probe.share(16), {"ours": rates})
    for peer in peers:
        turn.rates[peer.name] = _rates(peer)
    return turn


def _rates(measured: Measured) -> dict[str, float]:
    rates = {f"prefill_{length}": measured.prefill(length) for length in PREFILL_LENGTHS}
    return rates | {f"decode_b{batch}": measured.decode(batch) for batch in BATCHES}


def _kv_cache_bytes(spec: ModelSpec) -> int:
    blocks_per_sequence = -(-2 * CONTEXT // BLOCK_SIZE)
    return max(BATCHES) * blocks_per_sequence * spec.block_bytes(BLOCK_SIZE, 4)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
