"""The store by itself: damage, full disks, dead and living neighbours, dropped files, and `persbench store`."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest

from persbench.errors import PersbenchError
from persbench.pipeline import store as store_module
from persbench.pipeline.store import MANIFEST, Store, StoreError, digest, write_atomically


def write(text: str, name: str = "result.txt"):
    def build(folder: Path) -> dict:
        (folder / name).write_text(text)
        return {"note": text}

    return build


def never(folder: Path) -> dict:
    pytest.fail("built twice")


def test_an_artefact_is_built_once(tmp_path) -> None:
    store = Store(tmp_path)
    first = store.get("protect", {"a": 1}, write("one"))
    second = store.get("protect", {"a": 1}, never)
    assert first.folder == second.folder
    assert second.path("result.txt").read_text() == "one"
    assert second.manifest["note"] == "one"
    assert store.built == [f"protect/{digest({'a': 1})}"]
    assert sorted(path.name for path in (tmp_path / "protect").iterdir()) == [first.folder.name]  # no lock stays


# --- damage


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "flip manifest", "truncate manifest", "delete manifest"])
def test_a_damaged_artefact_is_noticed_and_built_again(tmp_path, damage) -> None:
    artefact = Store(tmp_path).get("protect", {"a": 1}, write("one"))
    what, _, where = damage.partition(" ")
    path = artefact.folder / (MANIFEST if where else "result.txt")
    data = bytearray(path.read_bytes())
    if what == "flip":
        at = data.index(b"one")  # in the manifest a value that nothing else checks
        data[at] ^= 1
        path.write_bytes(data)
    elif what == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    store = Store(tmp_path)
    with pytest.warns(UserWarning, match=rf"damaged \({path.name}\); it is made again"):
        again = store.get("protect", {"a": 1}, write("one"))
    assert again.path("result.txt").read_text() == "one"
    assert again.manifest["note"] == "one"
    assert store.built
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Store(tmp_path).find("protect", digest({"a": 1}))


def test_a_file_that_changes_while_a_process_runs_is_noticed(tmp_path) -> None:
    store = Store(tmp_path)
    artefact = store.get("protect", {"a": 1}, write("one"))
    assert store.find("protect", artefact.folder.name)
    artefact.path("result.txt").write_text("other")
    with pytest.warns(UserWarning, match="damaged"):
        assert store.find("protect", artefact.folder.name) is None


def test_a_file_is_hashed_once_in_a_process(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    key = store.get("protect", {"a": 1}, write("one")).folder.name
    hashed: list[Path] = []
    original = store_module.file_digest
    monkeypatch.setattr(store_module, "file_digest", lambda path: hashed.append(path) or original(path))
    for _ in range(3):
        assert store.find("protect", key)
    assert len(hashed) == 1


def test_artefacts_without_checksum_of_their_manifest_are_still_read(tmp_path) -> None:
    artefact = Store(tmp_path).get("protect", {"a": 1}, write("one"))
    manifest = {key: value for key, value in artefact.manifest.items() if key != "checksum"}
    artefact.path(MANIFEST).write_text(json.dumps(manifest))
    Store(tmp_path).get("protect", {"a": 1}, never)


def test_a_failing_build_leaves_nothing(tmp_path) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> dict:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.get("protect", {"a": 1}, fails)
    assert not [path for path in (tmp_path / "protect").iterdir() if path.is_dir()]
    assert store.get("protect", {"a": 1}, write("whole")).path("result.txt").read_text() == "whole"


# --- full and read-only disks


def test_a_full_disk_is_one_clear_error_and_leaves_the_store_valid(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    store.get("protect", {"n": 1}, write("kept"))
    original = Path.open

    def full(path: Path, mode: str = "r", *more, **named):
        if "w" in mode and path.name == f".{MANIFEST}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, mode, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StoreError, match=r"cannot write to the store .*: No space left on device; free some space and run again"):
            store.get("protect", {"n": 2}, write("lost"))
    assert len(list((tmp_path / "protect").glob("[!.]*/"))) == len(list((tmp_path / "protect").glob(f"*/{MANIFEST}"))) == 1
    assert not list((tmp_path / "protect").glob(".*"))
    store.get("protect", {"n": 1}, never)
    store.get("protect", {"n": 2}, write("found"))


def test_a_really_full_and_a_really_read_only_disk(small_disk, tmp_path) -> None:
    store = Store(small_disk / "store")
    store.get("protect", {"n": 1}, write("kept"))
    with pytest.raises(StoreError, match="No space left on device"):
        store.get("protect", {"n": 2}, write("x" * 2**21))
    assert not list((small_disk / "store").glob("*/.*"))
    store.get("protect", {"n": 2}, write("small"))
    file = os.open(small_disk / "fill", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):  # until nothing more fits
        while os.write(file, b"x" * 4096):
            pass
    os.close(file)
    with pytest.raises(StoreError, match="No space left on device"):
        write_atomically(small_disk / "records" / "one.json", "x" * 5000)
    assert not (small_disk / "records").is_dir() or not list((small_disk / "records").iterdir())
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = Store(small_disk / "store")
    store.get("protect", {"n": 1}, never)  # reading goes on
    with pytest.raises(StoreError, match="Read-only file system; make it writable"):
        store.get("protect", {"n": 3}, write("never"))


def test_a_store_that_cannot_be_made_is_one_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PersbenchError, match="choose another folder"):
        Store(tmp_path / "file" / "store")


# --- killed runs

MANY = textwrap.dedent(
    """
    import random, sys, time
    from pathlib import Path
    from persbench.pipeline.store import Store
    store = Store(Path(sys.argv[1]))
    def build(folder):
        for name in "abc":
            time.sleep(0.002)
            (folder / name).write_text(str(len(store.built)) and name * 1000)
        return {}
    print("begin", flush=True)
    for number in range(40):
        store.get("protect", {"n": number}, build)
    """
)


def test_runs_killed_at_20_random_moments_lose_nothing_and_build_nothing_twice(tmp_path) -> None:
    rng = random.Random()
    seen: dict[str, tuple[int, int]] = {}

    def finished() -> dict[str, tuple[int, int]]:
        stats = {path.parent.name: path.stat() for path in tmp_path.glob(f"*/[!.]*/{MANIFEST}")}
        return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}

    kills = 0
    while kills < 20:
        process = subprocess.Popen([sys.executable, "-c", MANY, tmp_path], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.wait()
        process.stdout.close()
        kills += 1
        now = finished()
        assert seen.items() <= now.items()  # whatever was there is there, and the same files
        seen = now
    subprocess.run([sys.executable, "-c", MANY, tmp_path], check=True, capture_output=True)
    last = finished()
    assert seen.items() <= last.items()
    assert len(last) == 40
    store = Store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(40):
            artefact = store.get("protect", {"n": number}, never)
            assert {name: artefact.path(name).read_text() for name in "abc"} == {name: name * 1000 for name in "abc"}
    assert store.leftovers() == []


def test_the_lock_of_a_dead_run_is_free_and_what_it_left_is_cleaned(tmp_path, call) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from persbench.pipeline.store import Store
        def build(folder):
            (folder / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        Store(Path(sys.argv[1])).get("protect", {"n": 1}, build)
        """
    )
    root = tmp_path / "store"

    def die() -> None:
        assert subprocess.run([sys.executable, "-c", code, root], timeout=60).returncode == -signal.SIGKILL

    die()
    store, key = Store(root), digest({"n": 1})
    left = {root / "protect" / f".{key}.partial", root / "protect" / f"{key}.lock"}
    assert set(store.leftovers()) == left
    assert call("store", "gc", "--output", tmp_path, "--dry-run")[0] == 0
    assert all(path.exists() for path in left)
    status, out, _ = call("store", "gc", "--output", tmp_path)
    assert status == 0
    assert "2 leftovers, 0 artefacts" in out
    assert not any(path.exists() for path in left)
    die()  # and nobody cleans
    assert store.get("protect", {"n": 1}, write("whole")).path("result.txt").read_text() == "whole"


# --- two runs at once


def _both(root: Path, log: Path, barrier) -> None:
    store = Store(root)

    def build(folder: Path) -> dict:
        with log.open("a") as stream:
            stream.write("built\n")
        time.sleep(0.05)
        (folder / "a.txt").write_text("a")
        return {}

    barrier.wait()
    for number in range(5):
        store.get("protect", {"n": number}, build)


def test_two_runs_on_one_store_do_each_stage_once(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    runs = [context.Process(target=_both, args=(tmp_path / "store", tmp_path / "log", barrier)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert (tmp_path / "log").read_text().count("built") == 5


def test_the_leftovers_of_a_living_run_stay(tmp_path) -> None:
    store = Store(tmp_path)

    def build(folder: Path) -> dict:
        assert Store(tmp_path).leftovers() == []
        (folder / "a.txt").write_text("a")
        return {}

    store.get("protect", {"n": 1}, build)


# --- dropped files


def both(folder: Path) -> dict:
    (folder / "weights.safetensors").write_text("weights")
    (folder / "photo.png").write_text("photo")
    return {"cost": {"seconds": 1.0}}


def test_dropped_files_are_remembered_and_built_again_when_needed(tmp_path) -> None:
    store, weights = Store(tmp_path), frozenset({".safetensors"})
    artefact = store.get("protect", {"n": 1}, both)
    key = artefact.folder.name
    assert store.drop("protect", key, weights) == len("weights")
    dropped = Store(tmp_path).find("protect", key)
    assert sorted(path.name for path in dropped.folder.iterdir()) == [MANIFEST, "photo.png"]
    assert dropped.manifest["dropped"] == {"weights.safetensors": artefact.manifest["files"]["weights.safetensors"]}
    assert (dropped.lacks(weights), dropped.lacks({".png"})) == (True, False)
    store.get("protect", {"n": 1}, never)  # nobody asks for the weights
    store.get("protect", {"n": 1}, never, frozenset({".png"}))
    again = store.get("protect", {"n": 1}, lambda folder: both(folder) | {"cost": {"seconds": 9.0}}, weights)
    assert again.path("weights.safetensors").read_text() == "weights"
    assert again.manifest["cost"] == {"seconds": 1.0}  # what records say of it stays true
    assert not again.lacks(weights)
    assert store.find("protect", key)
    assert store.drop("protect", "0" * 40, weights) == 0


def test_other_bits_of_what_was_dropped_are_told(tmp_path) -> None:
    store, weights = Store(tmp_path), frozenset({".safetensors"})
    key = store.get("protect", {"n": 1}, both).folder.name
    store.drop("protect", key, weights)
    with pytest.warns(UserWarning, match=r"other bits \(weights.safetensors\)"):
        store.get("protect", {"n": 1}, write("Weights", "weights.safetensors"), weights)
    store.drop("protect", key, weights)
    with pytest.raises(PersbenchError, match=r"without weights\.safetensors"):
        store.get("protect", {"n": 1}, write("x"), weights)
    assert store.find("protect", key).lacks(weights)


def test_a_run_killed_while_it_drops_leaves_no_damage(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    key = store.get("protect", {"n": 1}, both).folder.name
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.drop("protect", key, {".safetensors"})
    found = Store(tmp_path).find("protect", key)
    assert found.lacks({".safetensors"})
    assert [path.name for path in store.leftovers() if path.suffix != ".lock"] == ["weights.safetensors"]


# --- persbench store


def filled(folder: Path) -> tuple[Store, dict[str, str]]:
    """A store with a record that refers to a protection through a generation, one that nothing refers to, and an unknown record."""
    store = Store(folder / "store")
    keys = {"protect": store.get("protect", {"n": 1}, both).folder.name, "lonely": store.get("protect", {"n": 2}, both).folder.name}
    keys["generate"] = store.get("generate", {"model": f"protect:{keys['protect']}"}, write("p", "picture-000.png")).folder.name
    keys["score"] = store.get("score", {"sets": {"attacked": keys["generate"]}}, write("[]", "rows.json")).folder.name
    text = json.dumps({"pictures": {"attacked": keys["generate"]}})
    keys["record"] = store.get("record", {"scores": {"identity": keys["score"]}}, write(text, "record.json")).folder.name
    keys["old record"] = store.get("record", {"scores": {}}, write("{}", "record.json")).folder.name
    write_atomically(folder / "records" / "0.json", text)
    return store, keys


def test_store_size_and_verify(call, tmp_path) -> None:
    store, keys = filled(tmp_path)
    store.drop("protect", keys["protect"], {".safetensors"})
    code, out, _ = call("store", "size", "--output", tmp_path)
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["protect"] == ["protect", "2", "3", "17", "bytes", "1"]
    assert rows["all"][1:3] == ["6", "7"]
    assert call("store", "verify", "--output", tmp_path)[:2] == (0, "6 artefacts, 0 damaged\n")
    (store.folder("protect", keys["lonely"]) / "photo.png").write_text("phot0")
    code, out, _ = call("store", "verify", "--output", tmp_path)
    assert code == 1
    assert f"{keys['lonely']} (photo.png)" in out
    assert "6 artefacts, 1 damaged" in out
    assert store.folder("protect", keys["lonely"]).is_dir()  # it only looks
    code, _, err = call("store", "size", "--output", tmp_path / "no")
    assert code == 2
    assert "no store in" in err


def test_gc_of_what_is_unused_and_of_what_is_old(call, tmp_path) -> None:
    store, keys = filled(tmp_path)
    names = {"--output": tmp_path}
    words = ("store", "gc", *(word for pair in names.items() for word in pair))
    code, out, _ = call(*words, "--unused", "--dry-run")
    assert code == 0
    assert "2 artefacts: would free" in out
    assert keys["lonely"] in out and keys["old record"] in out
    assert len(list(store.artefacts())) == 6
    assert "0 artefacts" in call(*words, "--unused", "--older-than", "1")[1]
    os.utime(store.folder("protect", keys["lonely"]) / MANIFEST, (0, 0))
    os.utime(store.folder("generate", keys["generate"]) / MANIFEST, (0, 0))
    assert "1 artefacts: freed" in call(*words, "--unused", "--older-than", "1")[1]
    assert sorted(key for _, key in store.artefacts()) == sorted(keys[name] for name in keys if name != "lonely")
    assert "1 artefacts: freed" in call(*words, "--unused")[1]
    assert sorted(key for _, key in store.artefacts()) == sorted(keys[n] for n in ("protect", "generate", "score", "record"))
    assert "1 artefacts: freed" in call(*words, "--older-than", "1")[1]
    assert keys["generate"] not in {key for _, key in store.artefacts()}
    assert "0 leftovers, 0 artefacts" in call(*words)[1]


def test_the_store_says_why_something_is_made_again(tmp_path) -> None:
    store = Store(tmp_path)
    content = {"method": {"name": "x", "config": {"steps": 1, "rate": 2}}, "seed": 0}
    assert store.explain("protect", content) == "nothing like it in the store"
    store.get("protect", content, write("x"))
    changed = json.loads(json.dumps(content))
    changed["method"]["config"]["steps"] = 3
    assert store.explain("protect", changed) == "nearest one differs in method.config.steps"
