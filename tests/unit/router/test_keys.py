"""Keys of clients: who is let in, as whom, and what a change of the file does."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from diptych.errors import Unauthorized
from diptych.telemetry import make_logger
from router.keys import LOOK_AGAIN_S, Keys, key_entry, new_key, parse_keys
from router.sampling import cache_scope


class Held:
    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.log = io.StringIO()
        self.keys = Keys(str(path), make_logger("router", stream=self.log), lambda: self.now)

    def tenant_of(self, key: str) -> str:
        return self.keys.tenant_of(f"Bearer {key}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def add(path: Path, tenant: str) -> str:
    key = new_key()
    with path.open("a") as file:
        file.write(key_entry(tenant, key))
    return key


def test_each_key_is_its_tenants(path: Path) -> None:
    acme, acme_too, other = add(path, "acme"), add(path, "acme"), add(path, "other")
    held = Held(path)
    assert [held.tenant_of(key) for key in (acme, acme_too, other)] == ["acme", "acme", "other"]
    assert held.keys.tenant_of(f"bearer  {other} ") == "other"
    assert held.keys.required


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer sk-diptych-wrong", "Basic abc", "sk-diptych-x"])
def test_nobody_else_is_let_in(path: Path, header: str) -> None:
    add(path, "acme")
    with pytest.raises(Unauthorized):
        Held(path).keys.tenant_of(header)


def test_the_file_does_not_hold_the_key(path: Path) -> None:
    key = add(path, "acme")
    assert key not in path.read_text()
    digest = parse_keys(path.read_text()).popitem()[0].hex()
    with pytest.raises(Unauthorized):
        Held(path).tenant_of(digest)


def test_without_a_file_everybody_is_nobodys_tenant() -> None:
    keys = Keys("", make_logger("router", stream=io.StringIO()), lambda: 0.0)
    assert not keys.required
    assert keys.tenant_of("") == keys.tenant_of("Bearer x") == ""


def test_keys_come_and_go_without_a_restart(path: Path) -> None:
    first = add(path, "acme")
    held = Held(path)
    second = add(path, "other")
    with pytest.raises(Unauthorized):
        held.tenant_of(second)  # not looked at again yet
    held.now += LOOK_AGAIN_S
    assert held.tenant_of(second) == "other"
    path.write_text(key_entry("other", second))
    held.now += LOOK_AGAIN_S
    with pytest.raises(Unauthorized):
        held.tenant_of(first)


@pytest.mark.parametrize("spoilt", ["keys = [", "[[keys]]\ntenant = 'a'", None])
def test_a_file_that_became_unreadable_changes_nothing(path: Path, spoilt: str | None) -> None:
    key = add(path, "acme")
    held = Held(path)
    if spoilt is None:
        path.unlink()
    else:
        path.write_text(spoilt)
        os.utime(path, (1, 1))
    held.now += LOOK_AGAIN_S
    assert held.tenant_of(key) == "acme"
    with pytest.raises(Unauthorized):
        held.tenant_of(new_key())
    assert "api_keys_unreadable" in held.log.getvalue()


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    withdrawn, kept = add(path, "acme"), add(path, "other")
    held = Held(path)
    path.write_text(key_entry("other", kept))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        held.now += LOOK_AGAIN_S
        assert held.tenant_of(withdrawn) == "acme"
    held.now += LOOK_AGAIN_S  # nothing about the file has changed but that it can be read
    with pytest.raises(Unauthorized):
        held.tenant_of(withdrawn)
    assert held.tenant_of(kept) == "other"


def refuse(path: Path) -> str:
    raise PermissionError(f"not allowed: {path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys = 3", "keys"),
        ("[[keys]]\ntenant = 'a'\nsha256 = 'abc'", "64 hexadecimal digits"),
        (f"[[keys]]\ntenant = 'a b'\nsha256 = '{'0' * 64}'", "tenant is 'a b'"),
        (f"[[keys]]\ntenant = ''\nsha256 = '{'0' * 64}'", "tenant is ''"),
        (f"[[keys]]\ntenant = 'a'\nsha256 = '{'0' * 64}'\nkey = 'x'", "key"),
        ("\x00", "keys"),
    ],
)
def test_a_wrong_file_is_refused_at_start(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Held(path)


def test_a_missing_file_is_refused_at_start(path: Path) -> None:
    with pytest.raises(ValueError, match="api_keys_file"):
        Held(path)


def test_tenants_share_no_scope_and_no_salt_imitates_one() -> None:
    scopes = [
        cache_scope(None),
        cache_scope("acme"),
        cache_scope(None, "acme"),
        cache_scope("x", "acme"),
        cache_scope("acmex", ""),
        cache_scope(None, "acmex"),
        cache_scope("\u00ffacme\u00ff"),
    ]
    assert len(set(scopes)) == len(scopes)
    assert cache_scope("", "acme") == cache_scope(None, "acme")
