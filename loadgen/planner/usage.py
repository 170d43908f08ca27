"""What is wrong with a command line by itself: a status of its own, so that it is never read as an answer."""

from __future__ import annotations

WRONG_USAGE = 2  # exit status, as the command line itself has it for a flag that it does not know


class WrongUsage(ValueError):
    """What was asked for makes no sense, whatever the trace holds and whatever runs."""


def check_times(rate: float, speedup: float) -> None:
    """
    Raises:
        WrongUsage: no request can be sent so, or the two contradict each other.
    """
    if rate < 0 or speedup <= 0 or (rate and speedup != 1.0):
        raise WrongUsage("give a rate or a speed-up of recorded times, not both, and above 0")
