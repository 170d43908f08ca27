"""Compiles the C++ files beside this one into a shared library, once per machine and user.

A plain compiler call: about two seconds, no headers but the compiler's own. The library lies in the user's cache under
a name made of everything it depends on (sources, compiler, flags, processor), so there is nothing to invalidate, and it
appears there by a rename, so several workers may build at the same time.

Loading a library is running it. So the cache folder must be the user's own and writable by nobody else; otherwise
nothing is loaded from it.

Knows nothing about what the library does.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# No contraction and no -ffast-math: the order and rounding of every sum is what the source says.
COMMON_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-fvisibility=default")
# In order of preference. OpenMP is compiled in but not linked: its symbols are those of the runtime that torch loaded,
# so that both share one set of threads; where torch has none, loading fails and the next variant is taken.
VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ())
TIMEOUT_S = 120


def libraries(cache: Path) -> Iterator[Path]:
    """Paths of the library, the best variant first, compiled when asked for and not there yet.

    Yields nothing, with a line in the log, where there is no compiler, no safe cache, or compiling fails.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        log.warning("no C++ compiler (%s) found: attention runs in torch, slower", ", ".join(COMPILERS))
        return
    try:
        _make_private(cache)
        for flags in VARIANTS:
            path = cache / f"diptych-kernels-{_key(compiler, flags)}.so"
            if path.exists() or _compile(compiler, flags, path):
                _refuse_foreign(path)
                yield path
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the C++ kernels cannot be built or are not safe to load, attention runs in torch: %s", error)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/diptych/kernels, or below ~/.cache."""
    given = Path(environment.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else Path(environment.get("HOME") or Path.home()) / ".cache"
    return base / "diptych" / "kernels"


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT_S).stdout
    parts = [version, platform.machine().encode(), _processor(), " ".join(COMMON_FLAGS + flags).encode()]
    parts += [
        path.name.encode() + path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".cpp", ".h")
    ]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _processor() -> bytes:
    """What -march=native depends on, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    names = (b"vendor_id", b"cpu family", b"model", b"flags", b"Features", b"CPU part", b"CPU implementer")
    return b"\n".join(sorted({line for line in lines if line.split(b":")[0].strip() in names}))


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> bool:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        sources = sorted(str(source) for source in SOURCES.glob("*.cpp"))
        compiled = _call([compiler, *COMMON_FLAGS, *flags, "-c", *sources], folder)
        objects = sorted(str(each) for each in Path(folder).glob("*.o"))
        built = Path(folder) / path.name
        # Without -fopenmp, which would link a second OpenMP runtime.
        if not (compiled and _call([compiler, "-shared", *objects, "-o", str(built)], folder)):
            return False
        built.chmod(0o700)
        built.replace(path)
    log.info("compiled %s with %s in %.1f s", path, " ".join(flags) or "no special flags", time.perf_counter() - began)
    return True


def _call(command: list[str], folder: str) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        log.info("%s failed: %s", " ".join(command), done.stderr.strip()[-2000:])
    return done.returncode == 0


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(folder)
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(f"anybody may replace what is in {parent}")


def _refuse_foreign(path: Path) -> None:
    """Raises PermissionError unless `path` is this user's own, writable by no other and no link."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} must belong to this user, be no link and be writable by nobody else")
