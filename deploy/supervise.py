"""Runs a main function in a child, and makes sure that nothing outlives it: whatever dies first, and however.

    supervisor ── child (the driver) ── Ray, Valkey … ── workers

- The child dies, killed or not: the supervisor is the subreaper, so everything orphaned below it becomes its child
  (prctl(2), PR_SET_CHILD_SUBREAPER), and is ended.
- The supervisor is killed: the kernel tells the child to stop (PR_SET_PDEATHSIG), which then cleans up by itself.

Has to be called while the process has one thread, before anything large is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SIGNAL = signal.SIGUSR1  # from supervisor to child: Ray takes SIGTERM away from whoever imports it
GRACE_S = 3.0


class Told(BaseException):
    """Raised in the child, once, when it is told to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def supervise(main: Callable[[], int], cleanup: Callable[[], None], grace_s: float = GRACE_S) -> int:
    """Run `main` in a child and return its exit code (128 + the signal that killed it), with nothing left running.

    Args:
        main: is told to stop by `Told`, raised wherever it is.
        cleanup: called at the very end, by whichever of the two is left.
        grace_s: for what still runs when `main` has returned.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _listen()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        libc.prctl(PR_SET_PDEATHSIG, STOP_SIGNAL)
        code = _exit_code_of(main) if os.getppid() == parent else 1
        if os.getppid() != parent:  # nobody else is left to do it
            end_descendants(grace_s)
            cleanup()
        os._exit(code)
    _forward_signals(child)
    try:
        killed, code = _wait_for(child)
        end_descendants(0.0 if killed else grace_s)
    finally:
        cleanup()
    return code


def _forward_signals(child: int) -> None:
    def forward(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, STOP_SIGNAL)

    for number in FORWARDED:
        signal.signal(number, forward)


def stop_listening() -> None:
    """No signal raises anything any more: stopping is never cut short."""
    for number in (*FORWARDED, STOP_SIGNAL):
        signal.signal(number, lambda _number, _frame: None)  # SIG_IGN would be handed on to every program started


def _listen() -> None:
    """A terminal sends SIGINT to both, so it counts once; what else is sent to both comes from the supervisor again."""

    def tell(number: int, _frame: FrameType | None) -> None:
        stop_listening()
        raise Told(number)

    stop_listening()
    signal.signal(signal.SIGINT, tell)
    signal.signal(STOP_SIGNAL, tell)


def _exit_code_of(main: Callable[[], int]) -> int:
    try:
        return main()
    except Told as told:
        return told.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _wait_for(child: int) -> tuple[bool, int]:
    """Reap the child, and whatever orphan ends before it. Returns whether it was killed, and the exit code."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code < 0, 128 - code if code < 0 else code


def end_descendants(grace_s: float) -> None:
    """Wait `grace_s` for every descendant to end, then kill what is left."""
    deadline = time.monotonic() + grace_s
    me = psutil.Process()
    while descendants := me.children(recursive=True):
        for process in descendants:
            if time.monotonic() >= deadline:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        psutil.wait_procs(descendants, timeout=0.05)
