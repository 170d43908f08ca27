"""Nothing outlives a supervised program, whichever of its processes is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

WAIT_S = 10.0
PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from deploy.supervise import Told, supervise

folder = Path(sys.argv[1])

def main():
    # A grandchild that its parent leaves behind in a session of its own: nothing but the supervisor can know it.
    leave = "import subprocess; d = subprocess.DEVNULL; "
    leave += "print(subprocess.Popen(['sleep', '600'], stdout=d, start_new_session=True).pid)"
    orphan = subprocess.run([sys.executable, "-c", leave], stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        print(os.getpid(), orphan, flush=True)
        if "return" in sys.argv:
            return 7
        time.sleep(600)
    except Told:
        (folder / "told").touch()
        raise

sys.exit(supervise(main, (folder / "cleaned").touch, grace_s=0.1))
"""


class Supervised:
    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        command = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.child, self.orphan = (psutil.Process(int(pid)) for pid in self.process.stdout.readline().split())

    def wait(self) -> int:
        """Until all of it has ended; returns the supervisor's exit code."""
        _, alive = psutil.wait_procs([self.child, self.orphan], timeout=WAIT_S)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
        return self.process.wait(WAIT_S)

    @property
    def told(self) -> bool:
        return (self.folder / "told").exists()

    @property
    def cleaned(self) -> bool:
        return (self.folder / "cleaned").exists()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Supervised]:
    running = Supervised(tmp_path)
    yield running
    assert running.process.stdout is not None
    running.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on(program: Supervised, number: signal.Signals) -> None:
    program.process.send_signal(number)
    assert program.wait() == 128 + signal.SIGTERM
    assert program.told
    assert program.cleaned


def test_ctrl_c_goes_to_the_whole_group_and_counts_once(program: Supervised) -> None:
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert program.told
    assert program.cleaned


def test_a_killed_child_leaves_nothing(program: Supervised) -> None:
    program.child.kill()
    assert program.wait() == 128 + signal.SIGKILL
    assert program.cleaned


def test_a_killed_supervisor_leaves_nothing(program: Supervised) -> None:
    program.process.kill()
    program.wait()
    assert program.told
    assert program.cleaned


def test_the_exit_code_is_the_childs_and_orphans_are_ended(tmp_path: Path) -> None:
    program = Supervised(tmp_path, "return")
    assert program.wait() == 7
    assert program.cleaned
