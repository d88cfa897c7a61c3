"""Plug-ins that fail in every way, full disks in mid-run, kills, what `--keep` drops, and what must never be in the code."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from persbench import registry
from persbench.contracts import (
    Card,
    Countermeasure,
    Evidence,
    Method,
    Metric,
    Personalizer,
    PictureSet,
    PromptShift,
    Release,
    Row,
    Tamper,
    rows_of,
)
from persbench.errors import PersbenchError
from persbench.pipeline.checks import check_rows
from persbench.pipeline.spec import Cell, Part
from persbench.pipeline.stages import Node, Pipeline, StageError, save_weights, walk
from persbench.pipeline.store import MANIFEST, Store, StoreError
from persbench.pipeline.upkeep import Keeper

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class How:
    """Which fault."""

    how: str = ""


def wrong_photos(how: str, photos: torch.Tensor):
    if how == "raises":
        raise RuntimeError("out of luck")
    if how == "exits":
        sys.exit(3)
    faults = {
        "nan": photos * float("nan"),
        "shape": photos[:, :, 1:],
        "nothing": None,
        "levels": (photos * 255).to(torch.uint8),
        "list": photos.tolist(),
        "budget": (photos + 17.1 / 255).clamp(0, 1),
    }
    return faults[how]


def wrong_model(how: str, model):
    if how == "not a model":
        return "model"
    if how == "in place":
        with torch.no_grad():
            model.unet.conv_in.weight.mul_(2)
        return model
    changed = model.clone("unet")
    if how == "nan weights":
        with torch.no_grad():
            changed.unet.conv_in.weight.fill_(float("nan"))
    elif how == "other shape":
        changed.unet.conv_in.weight = torch.nn.Parameter(changed.unet.conv_in.weight[1:])
    return changed


class FaultyMethod(Method):
    """A protection with a fault."""

    Config, card, changes = How, Card("Faulty"), frozenset({"photos"})

    def protect(self, subjects, base, budget, rng):
        if self.config.how == "not a release":
            return {}
        if self.config.how == "in place":
            wrong_model("in place", base)
            return Release({each.name: each.photos for each in subjects})
        return Release({each.name: wrong_photos(self.config.how, each.photos) for each in subjects})


class FaultyRelease(Method):
    """A protection that releases a wrong model."""

    Config, card, changes = How, Card("Faulty"), frozenset({"model"})

    def protect(self, subjects, base, budget, rng):
        return Release(model=None if self.config.how == "nothing" else wrong_model(self.config.how, base))


class FaultyCountermeasure(Countermeasure):
    """A countermeasure with a fault."""

    Config, card = How, Card("Faulty")

    def apply(self, photos, adversary, rng):
        if self.config.how == "in place":
            wrong_model("in place", adversary.public)
            return photos
        return wrong_photos(self.config.how, photos)


class FaultyTamper(Tamper):
    """A tamper with a fault."""

    Config, card = How, Card("Faulty")

    def tamper(self, model, adversary, rng):
        return wrong_model(self.config.how, model)


class FaultyPersonalizer(Personalizer):
    """A personalizer with a fault."""

    Config, card = How, Card("Faulty")

    def words(self, words, language):
        return words.nothing if self.config.how == "words" else words

    def personalize(self, photos, words, model, adversary, rng):
        return wrong_model(self.config.how, model)


class FaultyShift(PromptShift):
    """A prompt shift with a fault."""

    Config, card = How, Card("Faulty")

    def shift(self, words, language):
        sys.exit(1)


class Darkness(Metric):
    """A metric of later."""

    card, higher_is_better = Card("Darkness"), {"darkness": True}

    def measure(self, evidence, evaluators):
        return rows_of("darkness", "attacked", 1 - evidence.sets["attacked"].pictures.mean(dim=(1, 2, 3)))


class Silent(Darkness):
    """A metric that says nothing."""

    def measure(self, evidence, evaluators):
        return []


@pytest.fixture
def faulty(monkeypatch) -> None:
    """The plug-ins above are registered as `faulty` (`faulty-release`, `faulty-shift`)."""
    for kind, name, plugin in [
        ("methods", "faulty", FaultyMethod),
        ("methods", "faulty-release", FaultyRelease),
        ("countermeasures", "faulty", FaultyCountermeasure),
        ("tampers", "faulty", FaultyTamper),
        ("personalizers", "faulty", FaultyPersonalizer),
        ("prompt_shifts", "faulty", FaultyShift),
    ]:
        register(monkeypatch, kind, name, plugin)


def register(monkeypatch, kind: str, name: str, plugin: type) -> None:
    point = EntryPoint(name, f"{__name__}:{plugin.__name__}", f"persbench.{kind}")
    monkeypatch.setitem(registry._found(kind), name, point)


@pytest.fixture
def run(reduced, faulty, tiny_epsilon, tmp_path) -> Pipeline:
    return Pipeline("avatars", str(tiny_epsilon), Store(tmp_path / "store"))


def cell(base: Path, method: str = "none", attack: str = "lora", **more) -> Cell:
    return Cell("avatars", str(base), method, attack, "ada", 0, **more)


def with_fault(what: Cell, how: str) -> Cell:
    return Cell(**{**what.__dict__, "options": tuple((name, (("how", how),)) for name in ("faulty", "faulty-release"))})


def fails(run: Pipeline, node: Node | None, message: str) -> None:
    """The node fails with this message and leaves nothing in the store; the base model is as it was."""
    from persbench.diffusion import DiffusionModel

    assert node is not None
    with pytest.raises(StageError, match=message):
        node.run(run.store)
    assert run.store.find(node.stage, node.key) is None
    assert not run.base.difference(DiffusionModel.load(run.base_folder))


# --- plug-ins


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "protect ada with faulty: RuntimeError: out of luck"),
        ("exits", "protect ada with faulty: SystemExit: 3"),
        ("nan", "faulty returned photos that are not finite"),
        ("shape", r"faulty must return float photos of shape \(4, 3, 32, 32\); it returned torch.float32 of shape \(4, 3, 31, 32\)"),
        ("nothing", "it returned nothing"),
        ("levels", "it returned torch.uint8 of shape"),
        ("list", "it returned list"),
        ("budget", r"faulty changed a photo by (17|18) levels; its budget is 16"),
        ("not a release", "faulty must return a Release; it returned dict"),
        ("in place", "faulty changed a model that was lent to it"),
    ],
)
def test_a_faulty_protection_of_photos_is_an_error_with_its_message(run, how, message) -> None:
    subject = run.track.subject("ada")
    fails(run, run.protect(with_fault(cell(run.base_folder, "faulty"), how), subject)[2], message)


MODELS = [
    ("not a model", "faulty.* must return a DiffusionModel; it returned str"),
    ("in place", "faulty.* changed a model that was lent to it"),
    ("nan weights", "faulty.* left weights that are not finite: unet.conv_in.weight"),
    ("other shape", "must keep the names and shapes of its weights; unet.conv_in.weight does not fit"),
]


@pytest.mark.parametrize(("how", "message"), [*MODELS, ("nothing", "says that it changes the model and released none")])
def test_a_faulty_protection_of_the_model_is_an_error_with_its_message(run, how, message) -> None:
    subject = run.track.subject("ada")
    fails(run, run.protect(with_fault(cell(run.base_folder, "faulty-release"), how), subject)[2], message)


@pytest.mark.parametrize(("how", "message"), MODELS)
def test_a_faulty_tamper_and_personalizer_are_errors_with_their_messages(run, how, message) -> None:
    subject = run.track.subject("ada")
    photos, model, _ = run.protect(cell(run.base_folder), subject)
    what = with_fault(cell(run.base_folder, "none", "faulty"), how)
    fails(run, run.tamper(what, Part("faulty"), model).node, message)
    from persbench.pipeline.spec import Attack

    attack = Attack((), (), Part("faulty"), None)
    fails(run, run.personalize(what, attack, photos, model, subject)[0].node, message)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "RuntimeError: out of luck"),
        ("nan", "faulty returned photos that are not finite"),
        ("shape", "faulty must return float photos"),
        ("nothing", "it returned nothing"),
        ("in place", "faulty changed a model that was lent to it"),
    ],
)
def test_a_faulty_countermeasure_is_an_error_with_its_message(run, how, message) -> None:
    subject = run.track.subject("ada")
    what = with_fault(cell(run.base_folder), how)
    fails(run, run.counter(what, Part("faulty"), run.published(subject), subject).node, message)


def test_what_is_raised_while_a_cell_is_planned_is_an_error_of_this_cell(run) -> None:
    with pytest.raises(StageError, match=r"plan none · lora@faulty · ada: SystemExit: 1"):
        run.plan(cell(run.base_folder, "none", "lora@faulty"))
    with pytest.raises(StageError, match=r"AttributeError: 'Words' object has no attribute 'nothing'"):
        run.plan(with_fault(cell(run.base_folder, "none", "faulty"), "words"))


EVIDENCE = Evidence({"attacked": PictureSet(torch.zeros(2, 3, 4, 4), ("a", "b"))}, torch.zeros(3, 3, 4, 4), torch.zeros(3, 3, 4, 4))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "returned no rows"),
        (None, "must return Rows; it returned NoneType"),
        ([1.0], "must return Rows; it returned float"),
        (rows_of("brightness", "attacked", torch.zeros(2)), "returned 'brightness', which its higher_is_better does not declare"),
        (rows_of("darkness", "atacked", torch.zeros(2)), "rows of a set 'atacked', which does not exist"),
        (rows_of("darkness", "attacked", torch.zeros(1)), "one row of darkness for each of the 2 pictures of attacked"),
        (rows_of("darkness", "attacked", torch.zeros(2)) * 2, "one row of darkness for each of the 2 pictures"),
        (rows_of("darkness", "released", torch.zeros(2)), "one row of darkness for each of the 3 pictures of released"),
        ([Row("darkness", "attacked", 0, 0.0), Row("darkness", "attacked", 2, 0.0)], "one row of darkness for each of the 2"),
        ([Row("darkness", "attacked", 0, torch.zeros(())), Row("darkness", "attacked", 1, 0.0)], "must return numbers; it returned Tensor"),
        ([Row("darkness", "attacked", 0, None), Row("darkness", "attacked", 1, 0.0)], "without value and without error"),
    ],
)
def test_rows_that_do_not_fit_the_evidence_are_an_error(rows, message) -> None:
    with pytest.raises(PersbenchError, match=f"metric late .*{message}"):
        check_rows("late", Darkness(), rows, EVIDENCE)


def test_sound_rows_pass_and_what_is_not_finite_becomes_an_error_row() -> None:
    rows = [Row("darkness:left", "attacked", 0, float("nan")), Row("darkness:left", "attacked", 1, 0.5)]
    first, second = check_rows("late", Darkness(), rows, EVIDENCE)
    assert (first.value, first.error) == (None, "not a finite number")
    assert second == rows[1]


def test_a_metric_without_rows_is_an_error_row(reduced, monkeypatch, tiny_epsilon, finished, tmp_path) -> None:
    register(monkeypatch, "metrics", "silent", Silent)
    run = Pipeline("avatars", str(tiny_epsilon), Store(shutil.copytree(finished / "store", tmp_path / "store")))
    found = json.loads(run.plan(cell(tiny_epsilon, "random-noise")).run(run.store).path("record.json").read_text())
    errors = [(row["metric"], row["error"]) for row in found["rows"] if row["value"] is None]
    assert errors == [("silent", "score silent: metric silent returned no rows")]
    assert [name.split("/")[0] for name in run.store.built] == ["record"]  # nothing else was run again


# --- full disks


def test_a_full_disk_stops_a_run_with_one_line(reduced, monkeypatch, call, tiny_epsilon, tmp_path) -> None:
    from persbench import pictures

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pictures, "save", full)
    words = ("run", "--method", "random-noise", "--subjects", "ada,boris", "--base", tiny_epsilon, "--output", tmp_path, "-q")
    code, out, err = call(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot write to the store" in err
    assert "No space left on device; free some space and run again: what is done is kept" in err
    assert not list((tmp_path / "store").glob("*/.*"))
    assert not (tmp_path / "records").exists()


def test_weights_that_do_not_fit_on_a_disk_are_the_same_error(small_disk, tiny_epsilon, monkeypatch) -> None:
    from persbench.diffusion import DiffusionModel

    model = DiffusionModel.load(tiny_epsilon)
    monkeypatch.setattr(DiffusionModel, "difference", lambda *_: {"unet.big": torch.zeros(2**19)})

    def build(folder: Path) -> None:
        save_weights(model, model, folder, "big")

    store = Store(small_disk)
    with pytest.raises(StoreError, match="No space left on device"):
        Node("protect", "protect", {}, build).run(store)
    assert not list(small_disk.glob("protect/.*"))


# --- kills


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_ends_with_the_same_records(tiny_epsilon, tmp_path) -> None:
    """Nothing that was finished is lost or made again, and the records are those of an undisturbed run."""
    code = textwrap.dedent(
        """
        import sys, threading
        from pathlib import Path
        sys.path.insert(0, sys.argv[3])
        import pytest
        from conftest import reduced
        from persbench.pipeline.spec import Cell
        from persbench.pipeline.stages import Pipeline
        from persbench.pipeline.store import Store
        with pytest.MonkeyPatch.context() as patch:
            reduced.__wrapped__(patch)
            print("begin", flush=True)
            for subject in ("ada", "boris"):
                for method in ("persguard-target", "random-noise"):
                    run = Pipeline("avatars", sys.argv[1], Store(Path(sys.argv[2])))
                    run.plan(Cell("avatars", sys.argv[1], method, "lora", subject, 0)).run(run.store)
        """
    )

    def start(store: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(tiny_epsilon), str(store), str(ROOT / "tests")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout.readline() == b"begin\n"
        return process

    began = time.monotonic()
    undisturbed = start(tmp_path / "whole")
    assert undisturbed.wait() == 0
    length = time.monotonic() - began
    store, seen = tmp_path / "store", {}
    rng = random.Random()
    kills = 0
    while kills < 20:
        process = start(store)
        time.sleep(rng.uniform(0, length / 8))
        kills += process.poll() is None
        process.kill()
        process.wait()
        now = {path.parent: path.stat().st_mtime_ns for path in store.glob(f"*/[!.]*/{MANIFEST}")}
        assert seen.items() <= now.items()
        seen = now
        if process.returncode == 0:  # it was faster: begin anew
            shutil.rmtree(store)
            seen = {}
    assert start(store).wait() == 0
    assert seen.items() <= {path.parent: path.stat().st_mtime_ns for path in store.glob(f"*/[!.]*/{MANIFEST}")}.items()

    def results(root: Path) -> dict:
        return {
            str(path.relative_to(root)): json.loads(path.read_text())["files"]
            for path in root.glob(f"*/[!.]*/{MANIFEST}")
            if path.parents[1].name != "record"
        }

    def records(root: Path) -> dict:
        found = [json.loads(path.read_text()) for path in root.glob("record/*/record.json")]
        return {str(record["cell"]): (record["rows"], record["pictures"]) for record in found}

    assert results(store) == results(tmp_path / "whole")
    assert records(store) == records(tmp_path / "whole")
    assert len(records(store)) == 4


# --- what --keep drops


def kinds(root: Path) -> dict[str, int]:
    """Files in a store that `--keep` may drop."""
    patterns = {"weights": "*/*/*.safetensors", "generated": "generate/*/*.png", "released": "protect/*/*.png"}
    return {kind: len(list(root.glob(pattern))) for kind, pattern in patterns.items()}


def test_files_are_dropped_once_every_stage_that_reads_them_is_done(tmp_path) -> None:
    store = Store(tmp_path)

    def node(stage: str, number: int, name: str, *inputs: Node) -> Node:
        return Node(stage, stage, {"n": number}, lambda folder: (folder / name).write_text("x") and None, inputs)

    release = node("protect", 0, "weights.safetensors")
    tuned = [node("personalize", number, "weights.safetensors", release) for number in range(2)]
    drawn = [node("generate", number, "picture-000.png", each) for number, each in enumerate(tuned)]
    cells = [node("record", number, "record.json", drawn[number], tuned[number], release) for number in range(2)]
    keeper = Keeper(store, "records")
    for each in cells:
        keeper.plan(each)
        for stage in walk(each):
            keeper.reads(stage)
    keeper.begin()

    def run(root: Node, complete: bool = True) -> None:
        root.run(store)
        for stage in walk(root):
            if complete or stage is not root:
                keeper.finished(stage.key)

    run(cells[0], complete=False)
    assert store.find("protect", release.key).lacks({".safetensors"}) is False  # the second cell reads it
    assert store.find("personalize", tuned[0].key).lacks({".safetensors"})
    assert not store.find("generate", drawn[0].key).lacks({".png"})  # an incomplete record is scored again
    run(cells[1])
    assert store.find("protect", release.key).lacks({".safetensors"})
    assert store.find("generate", drawn[1].key).lacks({".png"})
    built = len(store.built)
    assert len({each.key for root in cells for each in walk(root)}) == built
    for each in cells:
        each.run(store)
    assert len(store.built) == built  # a finished cell needs nothing of it
    drawn[1].run(store, frozenset({".png"}))
    assert [name.split("/")[0] for name in store.built[built:]] == ["protect", "personalize", "generate"]


def test_a_run_keeps_what_it_is_told_to_and_what_was_dropped_is_made_again(reduced, call, tiny_epsilon, finished, tmp_path) -> None:
    output = shutil.copytree(finished, tmp_path / "out")
    store = output / "store"
    before = kinds(store)
    assert min(before.values()) > 0
    words = ("run", "--method", "persguard-target", "--method", "random-noise", "--subjects", "ada", "--base", tiny_epsilon, "-q")
    words += ("--output", output)
    code, _, err = call(*words, "--keep", "some")
    assert (code, err) == (2, "persbench: unknown keep 'some'; there are: all, pictures, records\n")
    for keep, left in [("all", before), ("pictures", before | {"weights": 0}), ("records", before | {"weights": 0, "generated": 0})]:
        code, _, err = call(*words, "--keep", keep)
        assert code == 0, err
        assert kinds(store) == left
    assert not Store(store).leftovers()
    run = Pipeline("avatars", str(tiny_epsilon), Store(store))
    node = run.plan(cell(tiny_epsilon, "persguard-target", "lora(rank=2)"))
    node.run(run.store)  # a new attack on a release whose weights are gone
    assert sum(name.startswith("protect/") for name in run.store.built) == 1
    code, _, err = call("score", "--output", output, "-q")
    assert code == 1
    assert err.count("its pictures were dropped (--keep records); run the cell again with --keep pictures") == err.count("\n") > 0


def test_score_computes_a_new_metric_from_stored_pictures_alone(reduced, monkeypatch, call, tiny_epsilon, finished, tmp_path) -> None:
    output = shutil.copytree(finished, tmp_path / "out")
    assert call("score", "--output", output, "-q")[:2] == (0, "2 records: 0 changed, 0 could not be scored\n")
    for stage in ("protect", "tamper", "personalize", "generate"):
        for folder in (output / "store" / stage).glob("[!.]*/") if (output / "store" / stage).exists() else ():
            Store(output / "store").drop(stage, folder.name, {".safetensors"})
    register(monkeypatch, "metrics", "darkness", Darkness)
    before = {path.parent: path.stat().st_mtime_ns for path in (output / "store").glob(f"*/*/{MANIFEST}")}
    code, out, err = call("score", "--output", output, "-q")
    assert (code, out) == (0, "2 records: 2 changed, 0 could not be scored\n"), err
    new = {path.parent.parent.name for path in (output / "store").glob(f"*/*/{MANIFEST}") if path.parent not in before}
    assert new == {"score", "record"}
    assert kinds(output / "store")["weights"] == 0
    for path in (output / "records").glob("*.json"):
        record, old = json.loads(path.read_text()), json.loads((finished / "records" / path.name).read_text())
        values = [row["value"] for row in record["rows"] if row["metric"] == "darkness"]
        assert len(values) == 2 and all(0 < value < 1 for value in values)
        assert [row for row in record["rows"] if row["metric"] != "darkness"] == old["rows"]
        assert {name: record[name] for name in ("cell", "pictures", "stages", "configs")} == {
            name: old[name] for name in ("cell", "pictures", "stages", "configs")
        }
    key = record["pictures"]["attacked"]
    shutil.rmtree(output / "store" / "generate" / key)
    code, _, err = call("score", "--output", output, "-q")
    assert code == 1
    assert f"generate {key[:12]} is no longer in the store" in err


# --- what the code must not do

# Reads a published pickle without executing what it names; part of how the embedded track was built, not of the package's work.
READS_A_PICKLE = {"persbench/tracks/avatars/build/lpips_weights.py"}
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def unsafe(source: str) -> list[str]:
    """Ways to execute what a file says, in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.partition(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}

            def is_true(key: str, keywords: dict = keywords) -> bool:
                return isinstance(keywords.get(key), ast.Constant) and keywords[key].value is True

            if name == "torch.load" and not is_true("weights_only"):
                found.append(name)
            if "allow_pickle" in keywords or name in ("eval", "exec") or name.rpartition(".")[2] in ("extractall", "unpack_archive"):
                found.append(name)
            loads = name.rpartition(".")[2] == "from_pretrained" and name.split(".")[0].endswith(("Model", "KL"))
            if loads and None not in keywords and not is_true("use_safetensors"):
                found.append(name)
    return found


def test_no_code_can_execute_what_a_file_says() -> None:
    files = [path for name in ("persbench", "attacks", "methods", "metrics", "leaderboard") for path in sorted((ROOT / name).rglob("*.py"))]
    assert len(files) > 80
    bad = {str(path.relative_to(ROOT)): unsafe(path.read_text("utf-8")) for path in files}
    assert {name for name, calls in bad.items() if calls} == READS_A_PICKLE


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "UNet2DConditionModel.from_pretrained(folder)",
        "eval(text)",
    ],
)
def test_the_search_for_such_code_finds_it(source) -> None:
    assert unsafe(source)


def test_safe_ways_to_load_are_not_reported() -> None:
    assert not unsafe("torch.load(path, weights_only=True); load_file(path); UNet2DConditionModel.from_pretrained(x, use_safetensors=True)")
