"""What a folder's runs were measured of is noted, and something else is refused."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import msgspec
import pytest
from experiments import Played, experiment

import diptych
from loadgen.experiment.origin import Origin, origin_of
from loadgen.experiment.results import STATE, open_folder, read_state
from loadgen.experiment.run import Runner
from loadgen.experiment.software import commit
from loadgen.experiment.spec import Experiment, SpecError
from loadgen.experiment.tables import WorkloadSpec

LINE = '{"at_ms": %d, "input_tokens": 64, "output_tokens": 8, "status": 200}\n'


def silent(_text: str) -> None:
    pass


def of_file(path: Path, **workload: str) -> Experiment:
    made = experiment(seeds=[1])
    sweep = msgspec.structs.replace(made.sweep, input_tokens=[], output_tokens=[], rate=[], speedup=[1.0])
    return msgspec.structs.replace(made, sweep=sweep, workload=WorkloadSpec(what=f"log:{path}", **workload))


def test_files_are_noted_by_their_content(tmp_path: Path) -> None:
    trace, tokenizer = tmp_path / "t.jsonl", tmp_path / "tokenizer.json"
    trace.write_bytes(b"one")
    tokenizer.write_bytes(b"two")
    found = origin_of(of_file(trace, tokenizer=str(tokenizer)))
    assert found.files == {
        f"log:{trace}": hashlib.sha256(b"one").hexdigest(),
        f"the tokenizer {tokenizer}": hashlib.sha256(b"two").hexdigest(),
    }
    assert found.version == diptych.__version__
    assert origin_of(experiment()).files == {}  # a generator's words say all


def test_another_trace_behind_the_same_name_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_bytes(b"one")
    made = of_file(trace)
    for _ in range(2):
        open_folder(tmp_path / "out", made).stamp(origin_of(made))
    trace.write_bytes(b"another")
    with pytest.raises(SpecError, match=rf"the content of log:{trace} has changed.*--out"):
        open_folder(tmp_path / "out", made).stamp(origin_of(made))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model", "the served model was a and is b"),
        ("cluster", "the cluster was a and is b"),
        ("commit", "commit was a"),
    ],
)
def test_something_else_behind_the_same_file_is_refused(field: str, message: str) -> None:
    was, now, unknown = (Origin(version="1", **{field: value}) for value in ("a", "b", ""))
    assert message in was.differences(now)[0]
    assert was.differences(was) == was.differences(unknown) == unknown.differences(now) == []
    assert getattr(unknown.joined(now), field) == getattr(was.joined(unknown), field).replace("a", "b")


async def test_another_model_or_cluster_ends_a_continuation_before_it_measures(tmp_path: Path) -> None:
    made, first = experiment(seeds=[1]), Played(fail_after=5)
    first.cluster = "blue"
    with pytest.raises(KeyboardInterrupt):
        await Runner(open_folder(tmp_path, made), first, silent).run()
    noted = read_state(tmp_path).origin
    assert noted is not None
    assert (noted.model, noted.cluster) == ("m", "blue")
    for model, cluster in (("n", "blue"), ("m", "green")):
        other = Played()
        other.model, other.cluster = model, cluster
        with pytest.raises(SpecError, match="was begun with something else"):
            await Runner(open_folder(tmp_path, made), other, silent).run()
        assert (other.configs, other.closed) == ([], 1)
    same = Played()
    same.cluster = "blue"
    more = experiment(seeds=[1, 2])
    await Runner(open_folder(tmp_path, more), same, silent).run()
    assert read_state(tmp_path).origin == noted


async def test_a_folder_of_before_this_was_noted_is_refused_and_reported(tmp_path: Path) -> None:
    made = experiment(seeds=[1])
    with pytest.raises(KeyboardInterrupt):
        await Runner(open_folder(tmp_path, made), Played(fail_after=5), silent).run()
    old = msgspec.json.decode((tmp_path / STATE).read_bytes())
    del old["origin"]
    (tmp_path / STATE).write_bytes(msgspec.json.encode(old))
    backend = Played()
    with pytest.raises(SpecError, match=r"an earlier version of this software.*--out"):
        await Runner(open_folder(tmp_path, made), backend, silent).run()
    assert (backend.configs, backend.closed) == ([], 1)
    assert len(open_folder(tmp_path, made).runs()) == 5


def test_a_state_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    open_folder(tmp_path, experiment())
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes().replace(b"Test", b"T\xff\xfe\xfa"))
    with pytest.raises(SpecError, match="is not an experiment of this version"):
        read_state(tmp_path)


def test_a_commit_is_that_of_our_own_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True)

    mine = tmp_path / "program.py"
    mine.write_text("a")
    assert commit(mine) == ""  # no repository
    git("init")
    assert commit(mine) == ""  # somebody else's, in which this was installed
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("a")
    git("add", ".")
    git("commit", "-m", "a")
    clean = commit(mine)
    assert len(clean) == 40
    (tmp_path / "docs" / "page.md").write_text("b")
    assert commit(mine) == clean
    mine.write_text("b")
    changed = commit(mine)
    assert changed.startswith(f"{clean}+")
    mine.write_text("c")
    assert commit(mine) not in (clean, changed)
