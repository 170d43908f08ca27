"""Compiling the kernels: cached, safe to do twice at once, and never an error."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from diptych.engine.kernels import build
from diptych.engine.kernels.native import Kernels, load_kernels

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kernels"


@needs_compiler
def test_compiles_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = next(build.libraries(cache))
    assert path.parent == cache
    assert "compiled" in caplog.text
    Kernels(ctypes.CDLL(str(path)))
    written = path.stat().st_mtime_ns
    caplog.clear()
    assert next(build.libraries(cache)) == path
    assert path.stat().st_mtime_ns == written
    assert not caplog.text


@needs_compiler
def test_other_sources_are_another_library(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(build.libraries(cache))
    changed = tmp_path / "sources"
    shutil.copytree(build.SOURCES, changed)
    (changed / "rows.cpp").write_text((changed / "rows.cpp").read_text(encoding="utf-8") + "\n// changed\n")
    monkeypatch.setattr(build, "SOURCES", changed)
    assert next(build.libraries(cache)) != first


@needs_compiler
def test_two_may_build_at_once(cache: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(next(build.libraries(cache)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert os.listdir(cache) == [found[0].name]  # nothing half-made is left
    Kernels(ctypes.CDLL(str(found[0])))


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    assert load_kernels(cache) is None
    assert "no C++ compiler" in caplog.text


@needs_compiler
def test_sources_that_do_not_compile(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "broken.cpp").write_text("this is not C++\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert load_kernels(cache) is None
    assert "error" in caplog.text
    assert os.listdir(cache) == []


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_refuses_a_folder_others_may_write_to(cache: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert list(build.libraries(cache)) == []
    assert "writable by nobody else" in caplog.text


@needs_compiler
def test_refuses_a_folder_that_others_may_replace(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o777)
    assert list(build.libraries(cache)) == []
    assert "anybody may replace" in caplog.text


@needs_compiler
def test_refuses_links_and_libraries_others_may_change(cache: Path, tmp_path: Path) -> None:
    path = next(build.libraries(cache))
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    path.chmod(0o722)
    assert list(build.libraries(cache)) == []
    path.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(cache)
    assert list(build.libraries(link)) == []


def test_the_cache_is_the_users(tmp_path: Path) -> None:
    assert build.cache_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/diptych/kernels")
    assert build.cache_folder({"HOME": "/h"}) == Path("/h/.cache/diptych/kernels")
    assert build.cache_folder({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/diptych/kernels")
