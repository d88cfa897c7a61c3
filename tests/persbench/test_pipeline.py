"""The main job on tiny random Stable Diffusions, for two steps, through every stage."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from persbench.contracts import Words
from persbench.errors import PersbenchError, SkippedCell
from persbench.pipeline.spec import Cell
from persbench.pipeline.stages import Pipeline, swept
from persbench.pipeline.store import Store

pytestmark = pytest.mark.usefixtures("reduced")


def pipeline(base: Path, folder: Path) -> Pipeline:
    return Pipeline("avatars", str(base), Store(folder))


def cell(base: Path, method: str = "none", attack: str = "lora", **more) -> Cell:
    return Cell("avatars", str(base), method, attack, "ada", 0, **more)


def record(run: Pipeline, what: Cell) -> dict:
    return json.loads(run.plan(what).run(run.store).path("record.json").read_text())


@pytest.mark.parametrize("method", ["random-noise", "persguard-target", "persguard-erasure", "persguard-pattern"])
def test_main_job_on_sd1_and_sd2(tiny_base, tmp_path, method) -> None:
    run = pipeline(tiny_base, tmp_path)
    found = record(run, cell(tiny_base, method))
    metrics = {row["metric"] for row in found["rows"]}
    assert {"identity:resnet", "identity:convnext", "detected", "alignment", "linf_levels", "lpips", "prior_lpips"} <= metrics
    assert all(row["value"] is not None for row in found["rows"])
    sets = {row["set"] for row in found["rows"]}
    assert {"attacked", "control", "floor", "released", "prior:robot"} <= sets
    assert any(name.startswith("bystander:") for name in sets)
    changed = max(row["value"] for row in found["rows"] if row["metric"] == "linf_levels")
    assert changed == (8 if method == "random-noise" else 0)
    assert found["stages"]["protect"]["seconds"] > 0 < found["stages"]["protect"]["peak_mib"]
    assert found["provenance"]["packages"]["torch"] != "not installed"


def test_look_ahead_retention_runs(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    options = (("persguard-target", (("retention", "lookahead"),)),)
    assert record(run, cell(tiny_epsilon, "persguard-target", options=options))["rows"]


def test_stages_are_shared_and_a_second_run_builds_nothing(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    record(run, cell(tiny_epsilon, "none"))
    before = list(run.store.built)
    record(run, cell(tiny_epsilon, "random-noise"))
    new = [name.split("/")[0] for name in run.store.built[len(before) :]]
    # The control and the bystanders of an image-level method are those of `none`: only the attack on the noisy photos is new.
    assert sorted(set(new)) == ["generate", "personalize", "protect", "record", "score"]
    assert (new.count("protect"), new.count("personalize"), new.count("generate")) == (1, 1, 1)
    again = pipeline(tiny_epsilon, tmp_path)
    record(again, cell(tiny_epsilon, "random-noise"))
    assert again.store.built == []


def test_the_same_seed_gives_the_same_bits(tiny_epsilon, tmp_path) -> None:
    rows = []
    for name in ("one", "two"):
        run = pipeline(tiny_epsilon, tmp_path / name)
        found = record(run, cell(tiny_epsilon, "persguard-target"))
        rows.append((found["rows"], found["pictures"]))
    assert rows[0] == rows[1]
    for stage in ("generate", "personalize", "protect"):
        for manifest in sorted((tmp_path / "one" / stage).glob("*/manifest.json")):
            twin = tmp_path / "two" / stage / manifest.parent.name / "manifest.json"
            assert json.loads(manifest.read_text())["files"] == json.loads(twin.read_text())["files"]


def test_another_seed_gives_other_pictures(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    first = record(run, cell(tiny_epsilon))
    second = record(run, Cell("avatars", str(tiny_epsilon), "none", "lora", "ada", 1))
    assert first["pictures"]["attacked"] != second["pictures"]["attacked"]
    assert [r for r in first["rows"] if r["set"] == "attacked"] != [r for r in second["rows"] if r["set"] == "attacked"]


def test_the_floor_attack_needs_no_training(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    found = record(run, cell(tiny_epsilon, "none", "none"))
    assert found["pictures"]["attacked"] == found["pictures"]["floor"]
    assert not any(name.startswith("personalize/") for name in run.store.built)


@pytest.mark.usefixtures("plugin")
@pytest.mark.filterwarnings("ignore:.*does not import")
def test_plugins_of_another_package_go_through_the_whole_pipeline(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    found = record(run, cell(tiny_epsilon, "stripes", "darken+lora@other-name", budget=4.0))
    assert max(row["value"] for row in found["rows"] if row["metric"] == "linf_levels") == 4
    assert any(row["metric"] == "brightness" for row in found["rows"])
    assert any(name.startswith("counter/") for name in run.store.built)


@pytest.mark.usefixtures("plugin")
@pytest.mark.filterwarnings("ignore:.*does not import")
def test_a_tampered_model_is_shared_and_the_adversary_trains_as_the_tamper_says(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    for subject in ("ada", "boris"):
        found = record(run, Cell("avatars", str(tiny_epsilon), "none", "halve+lora", subject, 0))
        assert found["configs"]["attacked:halve"] == found["configs"]["control:halve"]
        assert found["configs"]["control:personalize"]["personalizer"]["config"]["steps"] == 1
        assert found["identifier_tokens"]["control:personalize"]
    assert sum(name.startswith("tamper/") for name in run.store.built) == 1
    halved = load_file(next((tmp_path / "tamper").glob("*/weights.safetensors")))
    name = "unet.conv_in.weight"
    assert torch.equal(halved[name], run.base.state()[name] / 2)


def test_one_release_can_protect_several_subjects(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    group = ("ada", "boris")
    for subject in group:
        found = record(run, Cell("avatars", str(tiny_epsilon), "persguard-target", "lora", subject, 0, group=group))
        assert [each["name"] for each in found["configs"]["protect"]["subjects"]] == list(group)
    assert sum(name.startswith("protect/") for name in run.store.built) == 1
    record(run, cell(tiny_epsilon, "persguard-target"))  # ada alone is another release
    assert sum(name.startswith("protect/") for name in run.store.built) == 2


@pytest.mark.usefixtures("plugin")
@pytest.mark.filterwarnings("ignore:.*does not import")
def test_an_impossible_cell_is_skipped_with_its_reason(tiny_epsilon, tmp_path) -> None:
    with pytest.raises(SkippedCell, match="paint is not available: it paints with oil"):
        pipeline(tiny_epsilon, tmp_path).plan(cell(tiny_epsilon, "none", "paint"))


def test_a_shifted_template_changes_the_prompts_that_start_with_the_standard_one(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    words = Words("xxy", "human", "an image of {}")
    assert set(run.prompts(words)) == {"an image of xxy human"}


@pytest.mark.usefixtures("plugin")
@pytest.mark.filterwarnings("ignore:.*does not import")
def test_a_method_that_raises_is_one_clear_error(tiny_epsilon, tmp_path) -> None:
    run = pipeline(tiny_epsilon, tmp_path)
    with pytest.raises(PersbenchError, match="protect ada with raises: RuntimeError: out of luck"):
        record(run, cell(tiny_epsilon, "raises"))


def test_a_metric_that_raises_is_an_error_row_and_gets_another_chance(tiny_epsilon, tmp_path, monkeypatch) -> None:
    from persbench.metrics.alignment import Alignment

    def out_of_memory(self, evidence, evaluators):
        raise MemoryError("detector needs 3 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(Alignment, "measure", out_of_memory)
        found = record(pipeline(tiny_epsilon, tmp_path), cell(tiny_epsilon))
        errors = [row for row in found["rows"] if row["value"] is None]
        assert [row["metric"] for row in errors] == ["alignment"]
        assert "detector needs 3 GiB" in errors[0]["error"]
    healed = record(pipeline(tiny_epsilon, tmp_path), cell(tiny_epsilon))
    assert all(row["value"] is not None for row in healed["rows"])


@pytest.mark.parametrize(("make", "message"), [("missing", "is not a folder"), ("empty", "no model_index.json")])
def test_a_wrong_base_is_one_clear_error(tmp_path, make, message) -> None:
    folder = tmp_path / "base"
    if make == "empty":
        folder.mkdir()
    run = pipeline(folder, tmp_path / "store")
    with pytest.raises(PersbenchError, match=message):
        record(run, cell(folder))


def test_a_run_killed_at_any_stage_ends_with_the_same_records(tiny_epsilon, tmp_path) -> None:
    """SIGKILL while stages are at work, then the same command again: rows equal those of an undisturbed run."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[3])
        import pytest
        from conftest import reduced
        from persbench.pipeline.spec import Cell
        from persbench.pipeline.stages import Pipeline
        from persbench.pipeline.store import Store
        with pytest.MonkeyPatch.context() as patch:
            reduced.__wrapped__(patch)
            run = Pipeline("avatars", sys.argv[1], Store(Path(sys.argv[2])))
            run.plan(Cell("avatars", sys.argv[1], "persguard-target", "lora", "ada", 0)).run(run.store)
        """
    )
    store = tmp_path / "store"
    command = [sys.executable, "-c", code, str(tiny_epsilon), str(store), str(Path(__file__).parents[1])]
    kills = 0
    for wanted in (1, 3, 6):  # kill as soon as so many artefacts exist
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and len(list(store.glob("*/*/manifest.json"))) < wanted:
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    resumed = record(pipeline(tiny_epsilon, store), cell(tiny_epsilon, "persguard-target"))
    undisturbed = record(pipeline(tiny_epsilon, tmp_path / "other"), cell(tiny_epsilon, "persguard-target"))
    assert resumed["rows"] == undisturbed["rows"]


def test_what_a_stage_leaves_behind_is_collected_at_once_and_nothing_else_is_looked_at() -> None:
    class Model:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        before = weakref.ref(Model())
        with swept():
            within = weakref.ref(Model())
        assert before() is not None
        assert within() is None
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
