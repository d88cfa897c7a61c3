"""Specification files: the same as options, overridden by them, checked with one-line errors."""

from __future__ import annotations

import json

import pytest

from persbench.cli.options import FLAGS
from persbench.errors import PersbenchError
from persbench.pipeline.spec import Cell
from persbench.pipeline.specfile import Specification, matrix, schema, specification
from persbench.pipeline.stages import Pipeline
from persbench.pipeline.store import Store
from persbench.tracks.avatars import Avatars

TEXT = """
methods: [none, random-noise]
attacks: [lora, "jpeg(quality=50)+lora"]
subjects: [ada, boris]
seeds: [0, 1]
options: {rank: 2, random-noise: {budget_levels: 5}}
"""


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_file_means_what_the_options_mean_and_options_override_it(tmp_path) -> None:
    path = write(tmp_path, TEXT)
    words = {
        "methods": ["none", "random-noise"],
        "attacks": ["lora", "jpeg(quality=50)+lora"],
        "subjects": ["ada,boris"],
        "seeds": ["0,1"],
        "options": ["rank=2", "random-noise.budget_levels=5"],
    }
    assert matrix(specification(path, {})) == matrix(specification(None, words))
    (run,) = matrix(specification(path, {"seeds": ["7"], "options": ["rank=3"]}))
    assert run.seeds == (7,)
    assert run.options == (("lora", (("rank", "3"),)), ("random-noise", (("budget_levels", "5"),)))
    assert len(run.cells()) == 8


def test_tracks_and_bases_multiply(tmp_path) -> None:
    runs = matrix(specification(write(tmp_path, "methods: none\nbases: ['', other]\nsubjects: quick, chen"), {}))
    assert [(run.track, run.base) for run in runs] == [("avatars", ""), ("avatars", "other")]
    assert runs[0].subjects == ("ada", "boris", "chen")


def test_the_standard_budget_is_the_tracks_and_another_one_is_the_runs() -> None:
    def asked(**more):
        return matrix(specification(None, {"methods": ["aspl"], **more}))[0].budget

    assert asked() is None
    assert asked(budget="standard") == asked(budget="16") == Avatars.standard_budget
    assert asked(budget="8") == 8.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [none]", "run.yaml: no methods; give --method NAME"),
        ("methods: [none]\nseed: [0]", "run.yaml: unknown key 'seed'; did you mean 'seeds'?"),
        ("methods: [none]\nseeds: a", "run.yaml: seeds: 'a' are not whole numbers"),
        ("methods: [none]\nbudget: 300", "run.yaml: budget: 300 is not between 0 and 255 levels"),
        ("methods: [none]\nbudget: paper", "run.yaml: budget: 'paper' is neither a number of levels nor 'standard'"),
        ("methods: [none]\nprecision: int4", "unknown precision 'int4'; there are: fp32, fp16, bf16"),
        ("methods: [none]\nprotocol: {inference_step: 2}", "unknown key 'protocol.inference_step'; did you mean 'inference_steps'?"),
        ("methods: [none]\nprotocol: {inference_steps: many}", "protocol.inference_steps: Input should be a valid integer"),
        ("methods: [none]\noptions: {lora: {rank: [1]}}", "options"),
        ("methods: [none", "run.yaml: line 1: "),
        ("none", "run.yaml: not a mapping"),
    ],
)
def test_a_wrong_file_is_one_line_with_key_and_fix(tmp_path, text, message) -> None:
    with pytest.raises(PersbenchError) as caught:
        specification(write(tmp_path, text), {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_schema_knows_every_option() -> None:
    found = schema()
    assert {*found["properties"]} == {*Specification.model_fields} >= {*FLAGS}
    assert found["required"] == ["methods"]
    assert found["additionalProperties"] is False
    assert json.dumps(found)


def test_another_protocol_is_part_of_cells_and_keys_and_the_standard_one_is_not(tmp_path, tiny_epsilon) -> None:
    changes = '{inference_steps: 2, prompts: ["a photo of {}"], options: {lora: {steps: 3}}}'
    (run,) = matrix(specification(None, {"methods": ["none"], "bases": [str(tiny_epsilon)], "subjects": ["ada"], "protocol": changes}))
    (cell,) = run.cells()
    assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell
    standard = Cell.from_dict({**cell.to_dict(), "protocol": {}})
    assert "protocol" not in Cell("avatars", "", "none", "lora", "ada", 0).to_dict()
    pipeline = Pipeline("avatars", str(tiny_epsilon), Store(tmp_path), protocol=cell.protocol)
    assert pipeline.track.protocol.inference_steps == 2
    options = pipeline.track.protocol.options
    assert (options["lora"]["steps"], options["lora"]["rank"]) == (3, 16)  # one by one: the rest is the track's
    assert type(pipeline.track).protocol.inference_steps == 15
    assert pipeline.plan(cell).key != Pipeline("avatars", str(tiny_epsilon), Store(tmp_path)).plan(standard).key
