"""Reads the description of a cluster: a TOML file, flags that override it, or flags alone.

The file's tables are the fields of `ClusterConfig`; `deploy/examples` has files to start from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from deploy.cluster_config import ClusterConfig


class ClusterFileError(ValueError):
    """The description cannot be used; the message says where and why."""


def read_cluster(path: Path | None, flags: Mapping[str, Any], default_model: str) -> ClusterConfig:
    """
    Args:
        path: of the file; None: flags and defaults only.
        flags: by dotted path, e.g. {"prefill.count": 3}; None as a value means that the flag was not given.
        default_model: where neither names one.

    Raises:
        ClusterFileError: the file cannot be read, or a field is unknown, missing or wrong.
    """
    described: dict[str, Any] = {"model": default_model} | (_read(path) if path else {})
    for name, value in flags.items():
        if value is not None:
            _put(described, name, value)
    source = f"{path}: " if path else ""
    try:
        return msgspec.convert(described, ClusterConfig, strict=True)
    except msgspec.ValidationError as error:
        raise ClusterFileError(f"{source}{_in_toml(str(error))}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ClusterFileError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClusterFileError(f"{path} is not TOML: {error}") from None


def _put(described: dict[str, Any], name: str, value: object) -> None:
    *tables, field = name.split(".")
    for table in tables:
        inner = described.setdefault(table, {})
        if not isinstance(inner, dict):
            return  # a table that is none: the conversion says so
        described = inner
    described[field] = value


def _in_toml(message: str) -> str:
    """msgspec says "… - at `$.prefill.count`"; the user knows no dollar."""
    text, separator, place = message.rpartition(" - at `$")
    return f"{place.strip('.`')}: {text}" if separator and place.strip(".`") else message if not separator else text
