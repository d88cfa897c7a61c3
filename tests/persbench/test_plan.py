"""Keys that planning must not change, and what a plan says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from persbench import registry
from persbench.pipeline import stages
from persbench.pipeline.forms import Forms
from persbench.pipeline.keys import Frozen, compose, key_of, thaw
from persbench.pipeline.planning import make_plan
from persbench.pipeline.spec import Cell, RunSpec
from persbench.pipeline.stages import Pipeline, StageError, walk
from persbench.pipeline.store import Store, canonical, digest
from persbench.tracks.avatars import Avatars


@pytest.fixture
def pinned(monkeypatch) -> None:
    """Everything in keys that may change for a reason is constant: sources, configurations, protocol, judges, photos."""
    monkeypatch.setattr(Pipeline, "_identity", staticmethod(lambda name, plugin: {"name": name}))
    monkeypatch.setattr(Pipeline, "_photos_digest", lambda self, paths: digest([path.name for path in paths]))
    monkeypatch.setattr(Pipeline, "base_digest", "base")
    monkeypatch.setattr(stages, "source_digest", lambda cls: "source")
    monkeypatch.setattr(Avatars, "evaluator_digest", lambda self: "judges")
    protocol = replace(
        Avatars.protocol,
        prompts=("a photo of {}",),
        pictures_per_prompt=2,
        inference_steps=2,
        guidance=3.0,
        bystanders=1,
        prior_pictures=1,
        class_pictures=4,
        options={},
    )
    monkeypatch.setattr(Avatars, "protocol", protocol)
    load_all = registry.load_all
    monkeypatch.setattr(registry, "load_all", lambda kind: {n: p for n, p in load_all(kind).items() if n in ("alignment", "identity")})


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize(
    ("method", "attack", "key", "count"),
    [
        ("none", "lora", "d04486b58a1e81c352aa2ba26f27f9e9247effbc", 8),
        ("random-noise", "jpeg(quality=50)+lora@identifier", "be27d76dc8d45c112420dd4b2f3544e1ba4c08ae", 16),
        ("persguard-target", "weight-merge+lora", "83f54c6bb19ce3c70838a67d13898996b29be654", 17),
    ],
)
def test_keys_stay_what_they_are(tmp_path, method, attack, key, count) -> None:
    """A change here makes every store of every user worthless: raise FORMATS instead where the meaning of a stage changes."""
    options = (("lora", (("rank", "2"),)),)
    node = Pipeline("avatars", "", Store(tmp_path)).plan(Cell("avatars", "", method, attack, "ada", 0, options=options))
    assert node.key == key
    everything = list(walk(node))
    assert len(everything) == count
    for each in everything:
        assert each.key == digest(each.content)


def test_frozen_values_do_not_change_keys() -> None:
    content = {"b": [1, 2.5, None], "a": {"ü": 'x"y', "z": {"k": True}}, "é": (1, 2)}
    mixed = {"b": Frozen(content["b"]), "a": Frozen({"z": Frozen(content["a"]["z"]), "ü": content["a"]["ü"]}), "é": (1, 2)}
    assert compose(mixed) == canonical(content)
    assert key_of(mixed) == digest(content)
    assert thaw(mixed) == content


def test_equal_sub_plans_are_one_node_and_forgetting_them_changes_nothing(tmp_path, tiny_epsilon, monkeypatch) -> None:
    cells = RunSpec("avatars", ("none", "random-noise"), ("lora", "jpeg+lora"), ("ada", "boris"), (0,), str(tiny_epsilon)).cells()
    run = Pipeline("avatars", str(tiny_epsilon), Store(tmp_path))
    planned = [run.plan(cell) for cell in cells]
    nodes: dict[str, int] = {}
    for node in (each for record in planned for each in walk(record)):
        assert nodes.setdefault(node.key, id(node)) == id(node)
    monkeypatch.setattr(stages, "PLANS_KEPT", 5)
    forgetful = Pipeline("avatars", str(tiny_epsilon), Store(tmp_path))
    assert [forgetful.plan(cell).key for cell in cells] == [record.key for record in planned]


def test_a_plan_counts_what_is_shared_and_what_is_there(tmp_path, tiny_epsilon) -> None:
    cells = RunSpec("avatars", ("none", "random-noise"), ("lora",), ("ada",), (0,), str(tiny_epsilon), bystanders=0).cells()
    store = Store(tmp_path)
    record = Pipeline("avatars", str(tiny_epsilon), store).plan(cells[0])
    control = next(node for node in walk(record) if node.stage == "personalize")
    store.get("personalize", control.content, lambda folder: {"cost": {"seconds": 4.0, "peak_mib": 100.0}})
    noise = next(node for node in walk(Pipeline("avatars", str(tiny_epsilon), store).plan(cells[1])) if node.stage == "protect")
    made = make_plan(cells, store)
    lines = {(line.stage, line.plugin): line for line in made.lines}
    assert (made.cells, made.done, made.skipped) == (2, 0, 0)
    assert (lines["personalize", "lora"].wanted, lines["personalize", "lora"].stored) == (2, 1)  # the control is shared
    assert lines["protect", "random-noise"].wanted == 1
    assert made.alone > sum(line.wanted for line in made.lines)
    assert (made.seconds, made.peak_mib) == (4.0, 100.0)  # one LoRA to do; nothing else has a cost yet
    assert noise.plugin == "random-noise"


def test_keys_of_many_cells_are_those_of_each_cell_alone(tmp_path, tiny_epsilon) -> None:
    methods = ("none", "random-noise", "persguard-target", "fsmg")
    attacks = ("none", "lora", "jpeg+lora@identifier", "weight-merge+dreambooth", "hotter+textual-inversion")
    cells = RunSpec("avatars", methods, attacks, ("ada", "boris"), (0, 7, -1), str(tiny_epsilon)).cells()
    cells += RunSpec("avatars", methods, ("lora",), ("ada", "boris"), (7,), str(tiny_epsilon), together=2, budget=4.0).cells()
    forms, run = Forms(Store(tmp_path)), Pipeline("avatars", str(tiny_epsilon), Store(tmp_path))
    seen: set[str] = set()
    for cell in cells:
        record, found = run.plan(cell), forms.plan(cell)
        nodes = [*walk(record), *record.scores()]
        assert (found.record, found.stages) == (record.key, len(nodes))
        assert sorted(found.new) == sorted(((node.stage, node.plugin), node.key) for node in nodes if node.key not in seen)
        seen |= {node.key for node in nodes}


def test_what_a_plug_in_raises_while_many_cells_are_planned_names_the_cell(tmp_path, tiny_epsilon, monkeypatch) -> None:
    def said(*words):
        raise RuntimeError("no words")

    monkeypatch.setattr(Pipeline, "_said", said)
    cell = Cell("avatars", str(tiny_epsilon), "random-noise", "lora", "ada", 0)
    with pytest.raises(StageError, match="plan random-noise · lora · ada: RuntimeError: no words"):
        make_plan([cell], Store(tmp_path))
