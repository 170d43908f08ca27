"""Prefill and decode on two hosts that share nothing but two network links; see `two_hosts_inside.py` for what happens
there. Each run begins on a machine of its own: a process that is already threaded, as pytest's is, cannot move."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import netns
import pytest

INSIDE = Path(__file__).with_name("two_hosts_inside.py")
TIMEOUT_S = 240.0  # of one run; each wait inside has its own, shorter one


@pytest.fixture(scope="module", autouse=True)
def _can_make_hosts() -> None:
    if reason := netns.why_not():
        pytest.skip(reason)


def run_inside(marked: str, folder: Path) -> None:
    """The tests of `two_hosts_inside.py` with these markers, on two hosts."""
    pytest_there = [sys.executable, "-m", "pytest", str(INSIDE), "-m", marked, "-p", "no:cacheprovider"]
    command = [*pytest_there, "--basetemp", str(folder / "there"), "--color=no"]
    status, output = netns.inside(command, TIMEOUT_S, os.environ)
    assert status == 0, output


def test_two_hosts(tmp_path: Path) -> None:
    run_inside("not slow", tmp_path)


@pytest.mark.slow
def test_two_hosts_with_links_cut_for_long(tmp_path: Path) -> None:
    run_inside("slow", tmp_path)
