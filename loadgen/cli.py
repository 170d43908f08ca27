"""The `python -m loadgen` command: a place for the commands of loadgen's parts.

A part is imported when its command is asked for, so that measuring never loads a simulator, and a part that is not
installed is no more than a command that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from cyclopts import App

import diptych

# Name of the command: where it is ("module:function"), and its line in the help.
COMMANDS = {
    "run": ("loadgen.client.cli:run", "Measure an OpenAI-compatible server, or (run FILE.toml) a whole experiment."),
    "experiment": ("loadgen.experiment.cli:run_experiment", "What `run FILE.toml` is: a sweep, repeated, reported."),
    "report": ("loadgen.client.cli:report", "Put measured runs side by side on one page."),
    "plan": ("loadgen.planner.cli:plan", "Find the number of prefill and decode workers for a trace, simulated."),
    "falsify": ("loadgen.falsify.cli:falsify", "Measure whether disaggregation pays on a trace, the plan fixed first."),
    "replay": ("loadgen.sim.cli:replay", "Replay a trace through a simulated cluster, in virtual time."),
    "timing": ("loadgen.sim.running:timing", "Measure a timing model for simulations on a running cluster."),
}


def main(words: Sequence[str]) -> int:
    """Returns the exit status. `run` of a TOML file is an experiment; of anything else it is one run."""
    if words[:1] == ["run"] and any(word.endswith(".toml") for word in words):
        words = ["experiment", *words[1:]]
    code = make_app()(words)
    return code if isinstance(code, int) else 0


def make_app() -> App:
    app = App(name="loadgen", help="Load for clusters, real and simulated.", version=diptych.__version__)
    for name, (path, line) in COMMANDS.items():
        if _is_there(path.partition(":")[0]):
            app.command(path, name=name, help=line)
    return app


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False
