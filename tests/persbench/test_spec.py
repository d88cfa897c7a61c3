from __future__ import annotations

import pytest

from persbench.errors import PersbenchError, UnknownNameError
from persbench.pipeline.spec import Attack, RunSpec, seed_of


@pytest.mark.usefixtures("plugin")
def test_the_attack_grammar_is_read_and_written_back() -> None:
    attack = Attack.parse("darken+darken+lora(rank=4,steps=10)@other-name")
    assert [part.name for part in attack.countermeasures] == ["darken", "darken"]
    assert attack.personalizer.options == (("rank", "4"), ("steps", "10"))
    assert attack.prompt_shift is not None
    assert str(attack) == "darken+darken+lora(rank=4,steps=10)@other-name"
    assert Attack.parse(str(attack)) == attack


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lorra", "did you mean 'lora'"),
        ("dakren+lora", "did you mean 'darken'"),
        ("lora@other-nmae", "did you mean 'other-name'"),
        ("darken", "write darken\\+lora"),
        ("", "cannot read ''"),
        ("lora(rank)", "write option=value"),
        ("lora+", "cannot read ''"),
    ],
)
def test_a_wrong_attack_is_one_clear_error(text, message) -> None:
    with pytest.raises((UnknownNameError, PersbenchError), match=message):
        Attack.parse(text)


def test_cells_are_the_product_and_subjects_stay_together() -> None:
    spec = RunSpec("avatars", ("none", "random-noise"), ("lora",), ("ada", "boris"), (0, 1))
    cells = spec.cells()
    assert len(cells) == 8
    assert [(c.seed, c.subject, c.method) for c in cells[:3]] == [(0, "ada", "none"), (0, "ada", "random-noise"), (0, "boris", "none")]
    assert hash(spec) == hash(RunSpec(**{**spec.__dict__}))


def test_seeds_depend_on_words_alone() -> None:
    assert seed_of("protect", "x", 0) == seed_of("protect", "x", 0)
    assert len({seed_of("a", "bc"), seed_of("ab", "c"), seed_of("a", "b", "c")}) == 3
