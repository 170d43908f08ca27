"""`python -m loadgen run EXPERIMENT.toml`: a whole experiment, from its file to its report."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loadgen.client.run import ShardFailed
from loadgen.client.told import Told, cancel_when_told
from loadgen.experiment.analysis import measured
from loadgen.experiment.configs import check_windows
from loadgen.experiment.export import csv_text, json_bytes
from loadgen.experiment.page import experiment_page
from loadgen.experiment.results import ResultFolder, open_folder, write_whole
from loadgen.experiment.run import Interrupted, Named, Runner
from loadgen.experiment.served import Served
from loadgen.experiment.simulated import Simulation
from loadgen.experiment.spec import Backend as BackendName
from loadgen.experiment.spec import Experiment, SpecError, read_experiment
from loadgen.experiment.system import StartedCluster, SystemUnavailable, running_cluster
from loadgen.experiment.terminal import summary_text
from loadgen.experiment.told import was_told

INVALID = 3  # exit status: measured, but some runs say nothing about the system

Say = Callable[[str], None]


def run_experiment(
    experiment: Path,
    /,
    *,
    out: Path | None = None,
    backend: BackendName | None = None,
    admin: str = "",
    admin_key: Annotated[str, Parameter(env_var="DIPTYCH_ADMIN_KEY", show_default=False)] = "",
    api_key: Annotated[str, Parameter(env_var="OPENAI_API_KEY", show_default=False)] = "",
    ca: str = "",
    report_only: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run an experiment from its file: every cell of its sweep, with every seed.

    What is over is kept: started again with the same file and folder, it goes on where it was stopped. Writes
    report.html, summary.json and summary.csv, and a file for each run, into the folder OUT. The exit status is 3 if the
    generator fell behind in a run and in its repetition, 130 if it was stopped by Ctrl-C, 143 by SIGTERM.

    Parameters
    ----------
    experiment
        TOML; loadgen/experiments has examples, loadgen/experiment/spec.py every field.
    out
        Folder of the results; by default loadgen-runs/ and the file's name.
    backend
        In place of the file's: cluster (starts its own), running (--admin), sim (virtual time, seconds).
    admin
        URL of a running cluster's admin door; takes "running" for granted. Empty: the one that this user runs.
    admin_key
        The door's key; better given in DIPTYCH_ADMIN_KEY than here.
    api_key
        Sent to the HTTP door as bearer token; never written to a file.
    ca
        PEM file of the authority that signed the certificates of https doors, if it is a private one.
    report_only
        Measure nothing, and write the report of what is there.
    """
    say, told = _say_since(time.monotonic), Told()
    try:
        made = read_experiment(experiment, "running" if admin else backend)
        suffix = "-sim" if made.backend == "sim" else ""
        folder = open_folder(out or Path("loadgen-runs") / f"{experiment.stem}{suffix}", made)
        try:
            if not report_only:
                check_windows(made)
                headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
                backend_made = _backend(made, folder, (admin, admin_key), headers, ca, say)
                asyncio.run(_until_told(Runner(folder, backend_made, say), told))
        finally:
            write_report(folder)
    except (KeyboardInterrupt, asyncio.CancelledError, Interrupted):
        again = shlex.join(["python", "-m", "loadgen", *sys.argv[1:]])
        print(f"loadgen: stopped; what is over is kept. To go on: {again}", file=sys.stderr)
        return told.exit_status
    except (SpecError, SystemUnavailable, ShardFailed, ValueError, OSError) as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return 1
    return 0 if all(run.result.valid for run in folder.runs()) else INVALID


def write_report(folder: ResultFolder) -> None:
    """Of what is there; nothing if nothing is."""
    state, cells = folder.state, measured(folder.runs())
    if not cells:
        return
    num_planned = len(state.experiment.sweep.made()) * len(state.experiment.seeds)
    write_whole(folder.path / "report.html", experiment_page(state, cells, num_planned).encode())
    write_whole(folder.path / "summary.csv", csv_text(cells).encode())
    write_whole(folder.path / "summary.json", json_bytes(state, cells))
    print(summary_text(state, cells))
    print(f"  {folder.path / 'report.html'}")


def _backend(
    made: Experiment, folder: ResultFolder, admin: tuple[str, str], headers: dict[str, str], ca: str, say: Say
) -> Named:
    if made.backend == "sim":
        return Simulation(made.sim)
    if made.backend == "cluster":
        wanted = (cell.remote_prefill for cell in made.sweep.made() if cell.prefill)
        started = StartedCluster(
            made.cluster.described(),
            folder.path / "cluster",
            os.environ,
            say,
            made.cluster.ray_address,
            alone=next((each for each in wanted if each != "always"), "auto"),
        )
        return Served(started, lambda: started.door, headers, ca_file=ca)
    running = running_cluster(*admin, ca, os.environ, say)
    return Served(running, lambda: running.door, headers, ca_file=ca)


async def _until_told(runner: Runner, told: Told) -> None:
    cancel_when_told(told)
    try:
        await runner.run()
    except (ShardFailed, SystemUnavailable):
        if await was_told():
            raise Interrupted from None
        raise


def _say_since(clock: Callable[[], float]) -> Say:
    began_s = clock()
    return lambda text: print(f"[{clock() - began_s:6.0f} s] {text}", file=sys.stderr, flush=True)
