"""A description is read from a file, from flags, or from both; what is wrong is said in the user's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cluster_config import ClusterConfig
from deploy.cluster_file import ClusterFileError, read_cluster
from deploy.process_config import process_config
from deploy.reconcile import Kind

EXAMPLES = Path(__file__).resolve().parents[3] / "deploy/examples"


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_without_anything_there_are_defaults() -> None:
    assert read_cluster(None, {"prefill.count": None}, "m") == ClusterConfig(model="m")


def test_flags_override_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, 'model = "x"\n[prefill]\ncount = 3\nnum_cpus = 2\n[decode.options]\nmax_running = 5\n')
    flags = {"prefill.count": 4, "decode.options.kv_cache_bytes": 1 << 20, "router.host": None}
    config = read_cluster(path, flags, "m")
    assert (config.model, config.prefill.count, config.prefill.num_cpus) == ("x", 4, 2.0)
    assert config.decode.options == {"max_running": 5, "kv_cache_bytes": 1 << 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 1", "model: Expected `str`"),
        ("[prefill]\ncount = '3'", "prefill.count: Expected `int`"),
        ("[prefill]\nconut = 3", "prefill: .*conut"),
        ("prefill = 3", "prefill: "),
        ("prefix = 3", "prefix"),
        ("[decode]\ncount = 0", "decode.count is 0"),
        ("[limits]\ndrain_timeout_s = -1", "limits: drain_timeout_s is -1"),
        ("what is this", "is not TOML"),
    ],
)
def test_the_message_names_file_place_and_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ClusterFileError, match=message) as refused:
        read_cluster(write(tmp_path, text), {"prefill.num_cpus": 1.0 if "prefill = 3" in text else None}, "m")
    assert str(refused.value).startswith(str(tmp_path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match="No such file"):
        read_cluster(tmp_path / "nowhere.toml", {}, "m")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_can_be_used(path: Path) -> None:
    config = read_cluster(path, {}, "m")
    for kind in Kind:
        process_config(config, kind, slot=0)
