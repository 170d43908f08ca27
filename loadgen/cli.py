"""The `python -m loadgen` command: a place for the commands of loadgen's parts.

A part is imported when its command is asked for, so that measuring never loads a simulator, and a part that is not
installed is no more than a command that is not there.
"""

from __future__ import annotations

from importlib.util import find_spec

from cyclopts import App

import diptych

# Name of the command: where it is ("module:function"), and its line in the help.
COMMANDS = {
    "run": ("loadgen.client.cli:run", "Measure an OpenAI-compatible server over HTTP."),
    "report": ("loadgen.client.cli:report", "Put measured runs side by side on one page."),
    "replay": ("loadgen.sim.cli:replay", "Replay a trace through a simulated cluster, in virtual time."),
}


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
