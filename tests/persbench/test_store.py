from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from persbench.errors import PersbenchError
from persbench.pipeline.store import Store, digest


def write(text: str):
    def build(folder: Path) -> dict:
        (folder / "result.txt").write_text(text)
        return {"note": text}

    return build


def test_an_artefact_is_built_once(tmp_path) -> None:
    store = Store(tmp_path)
    first = store.get("protect", {"a": 1}, write("one"))
    second = store.get("protect", {"a": 1}, lambda folder: pytest.fail("built twice"))
    assert first.folder == second.folder
    assert second.path("result.txt").read_text() == "one"
    assert second.manifest["note"] == "one"
    assert store.built == [f"protect/{digest({'a': 1})}"]


def test_a_damaged_artefact_is_noticed_and_built_again(tmp_path) -> None:
    store = Store(tmp_path)
    artefact = store.get("protect", {"a": 1}, write("one"))
    artefact.path("result.txt").write_text("0ne")
    with pytest.warns(UserWarning, match=r"damaged \(result.txt\)"):
        again = store.get("protect", {"a": 1}, write("one"))
    assert again.path("result.txt").read_text() == "one"
    (again.folder / "result.txt").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        assert store.find("protect", digest({"a": 1})) is None


def test_a_failing_build_leaves_nothing(tmp_path) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> dict:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.get("protect", {"a": 1}, fails)
    assert store.find("protect", digest({"a": 1})) is None
    assert store.get("protect", {"a": 1}, write("whole")).path("result.txt").read_text() == "whole"


def test_a_run_killed_in_the_middle_of_a_stage_is_resumed(tmp_path) -> None:
    """A process is killed by SIGKILL after it wrote half of the second artefact; the next run keeps the first and makes the second."""
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from persbench.pipeline.store import Store
        store = Store(Path(sys.argv[1]))
        def one(folder):
            (folder / "a.txt").write_text("first"); return {}
        def two(folder):
            (folder / "a.txt").write_text("sec")
            os.kill(os.getpid(), signal.SIGKILL)
        store.get("protect", {"n": 1}, one)
        store.get("protect", {"n": 2}, two)
        """
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert killed.returncode == -9
    store = Store(tmp_path)
    store.get("protect", {"n": 1}, lambda folder: pytest.fail("the finished stage is kept"))
    assert store.find("protect", digest({"n": 2})) is None
    assert store.get("protect", {"n": 2}, write("second")).path("result.txt").read_text() == "second"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(p.name for p in store.find("protect", digest({"n": 2})).folder.iterdir()) == ["manifest.json", "result.txt"]


def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PersbenchError, match="choose another folder"):
        Store(tmp_path / "file" / "store")


def test_the_store_says_why_something_is_made_again(tmp_path) -> None:
    store = Store(tmp_path)
    content = {"method": {"name": "x", "config": {"steps": 1, "rate": 2}}, "seed": 0}
    assert store.explain("protect", content) == "nothing like it in the store"
    store.get("protect", content, write("x"))
    changed = json.loads(json.dumps(content))
    changed["method"]["config"]["steps"] = 3
    assert store.explain("protect", changed) == "nearest one differs in method.config.steps"
