"""Two hosts on one machine, without root: network namespaces inside a user namespace of their own.

    host A: this process               host B: `TwoHosts.on_b` starts processes here
    10.77.0.1 ctl ◄──── veth ────► ctl 10.77.0.2     gRPC, HTTP, Redis
    10.78.0.1 data ◄─── veth ────► data 10.78.0.2    KV

`inside` runs a command on host A; only there `two_hosts` works. Namespaces and links vanish with their last process.
Memory, files and process ids are shared, so a transport that uses them (`sm` of UCX) would not notice that there are
two hosts: tests must look at what the links carried. Each host has a /sys of its own, where UCX looks for interfaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL, DATA = "ctl", "data"  # links, each an interface of the same name on both hosts
ADDRESS_A, ADDRESS_B = "10.77.0.1", "10.77.0.2"  # on the control link
_SUBNETS = {CONTROL: "10.77.0", DATA: "10.78.0"}
_OWN_SYS = "mount -t sysfs sysfs /sys"
_OWN_HOST = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--", "sh", "-c")
_PROBE = f"{_OWN_SYS} && ip link add p type veth peer name q && unshare --net --mount -- sh -c '{_OWN_SYS}'"
_INTERRUPT_GRACE_S = 30.0


def why_not() -> str:
    """Why two hosts cannot be made on this machine, in the words of what failed; empty if they can."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "mount") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not installed (packages util-linux, iproute2)"
    probe = subprocess.run([*_OWN_HOST, _PROBE], capture_output=True, text=True, timeout=30, check=False)
    said = " ".join(probe.stderr.split()) or f"status {probe.returncode}"
    return f"this machine does not let a user make network namespaces: {said}" if probe.returncode else ""


def inside(command: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command on a fresh host A; its status, and stdout with stderr. Nothing of it lives on.

    A command that takes too long is interrupted, so that it can clean up, then killed with all it started.
    """
    process = subprocess.Popen(
        [*_OWN_HOST, f'{_OWN_SYS} && exec "$@"', "host-a", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = _output(process, timeout_s)
    finally:
        _kill_session(process)
    return process.returncode, output


def _output(process: subprocess.Popen[str], timeout_s: float) -> str:
    try:
        return process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=_INTERRUPT_GRACE_S)[0]
    except subprocess.TimeoutExpired:
        _kill_session(process)
        return process.communicate()[0]


def _kill_session(process: subprocess.Popen[str]) -> None:
    """Also what its leader left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class TwoHosts:
    def __init__(self, holder: int) -> None:
        """
        Args:
            holder: pid of a process that is on host B already.
        """
        namespaces = (f"--net=/proc/{holder}/ns/net", f"--mount=/proc/{holder}/ns/mnt")
        # Put before a command: it then runs on host B, in this folder and under the pid it was started with.
        self.on_b = ("nsenter", *namespaces, "--", "sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd()))
        for link in _SUBNETS:
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", link, "netns", str(holder))
        for last, host in enumerate(((), self.on_b), start=1):
            _run(*host, "ip", "link", "set", "lo", "up")
            for link, subnet in _SUBNETS.items():
                _run(*host, "ip", "address", "add", f"{subnet}.{last}/24", "dev", link)
                _run(*host, "ip", "link", "set", link, "up")

    def pull(self, *links: str) -> None:
        """Pull the cable out of host B: both see that the link is down. Their kernels try again twice a second."""
        for link in links:
            _run(*self.on_b, "ip", "link", "set", link, "down")

    def plug(self, *links: str) -> None:
        for link in links:
            _run(*self.on_b, "ip", "link", "set", link, "up")

    def blackhole(self, *links: str) -> None:
        """Lose every packet on the way: the links look well, and TCP waits twice as long after every attempt.

        Each host sends to a hardware address that is not the other's, so that the other discards what it gets.
        """
        for link in links:
            for host, other in self._ends(link):
                nobody = ("lladdr", "02:00:00:00:00:01", "nud", "permanent")
                _run(*host, "ip", "neighbour", "replace", other, *nobody, "dev", link)

    def forward(self, *links: str) -> None:
        """The end of `blackhole`."""
        for link in links:
            for host, other in self._ends(link):
                _run(*host, "ip", "neighbour", "del", other, "dev", link)

    def _ends(self, link: str) -> tuple[tuple[tuple[str, ...], str], ...]:
        """For each host: what to put before its commands, and the other's address."""
        return ((), f"{_SUBNETS[link]}.2"), (self.on_b, f"{_SUBNETS[link]}.1")

    def sent_bytes(self, link: str) -> int:
        """What host A has sent over a link, headers included."""
        lines = Path("/proc/net/dev").read_text().splitlines()
        (counters,) = [line.split(":", 1)[1] for line in lines if line.strip().startswith(f"{link}:")]
        return int(counters.split()[8])


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Only where `inside` put this process."""
    command = ["unshare", "--net", "--mount", "--", "sh", "-c", f"{_OWN_SYS} && echo on && exec cat"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        holder.stdout.readline()  # its namespaces exist from here on
        yield TwoHosts(holder.pid)
    finally:
        holder.communicate()  # closes its input, which ends it


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
