"""Which program measures, for the pre-registration: its version, and its commit where it runs from a checkout."""

from __future__ import annotations

from pathlib import Path

import diptych
from loadgen.experiment.software import commit


def program(file: Path = Path(__file__)) -> str:
    """For example "diptych 0.1.0, commit 2f9c…, with uncommitted changes".

    Args:
        file: of the program. Where it is installed inside somebody else's repository git does not know it, and there is
            no commit.
    """
    said, (found, _, changed) = f"diptych {diptych.__version__}", commit(file).partition("+")
    if not found:
        return said
    return f"{said}, commit {found}{', with uncommitted changes' * bool(changed)}"
