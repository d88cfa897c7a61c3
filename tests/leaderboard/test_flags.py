from __future__ import annotations

import re
from pathlib import Path

import pytest
from persbench.leaderboard.flags import FLAGS, is_stronger
from synthetic import board, gap, record


def flags(records: list[dict], name: str = "m", **sets: tuple[str, ...]) -> dict[str, str]:
    """Flags of the row of a name, with where they were seen."""
    return {flag.name: flag.detail for flag in board(records, **sets).row(name).flags}


def test_every_flag_has_a_section_that_says_when_why_and_what_to_do() -> None:
    text = (Path(__file__).parents[2] / "docs" / "flags.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    assert list(sections) == [flag.name for flag in FLAGS]
    for section in sections.values():
        assert all(word in section for word in ("**Seen when**", "**Why it matters.**", "**What to do.**"))
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)
    assert all(flag.explanation.endswith(".") and flag.remedy.endswith(".") for flag in FLAGS)


def test_a_clean_row_has_no_flags() -> None:
    records = [record(subject=s, attack=a, levels=8.4, allowed=8) for s in ("ada", "boris") for a in ("lora", "jpeg+lora")]
    assert flags(records) == {}


def test_over_budget_as_measured() -> None:
    assert flags([record(levels=9, allowed=8)]) == {"over budget": "a photo changed by 9 levels, allowed were 8"}
    assert flags([record(levels=1)]) == {"over budget": "a photo changed by 1 levels, allowed were 0"}  # a model-level method
    assert flags([record("none")], "none") == {}


def test_void_controls() -> None:
    assert flags([record(), record(subject="boris", control=0.2)])["void controls"] == "1 of 2 under lora"


def test_errors_of_cells_and_of_metrics() -> None:
    broken = {"metric": "alignment", "set": "", "index": 0, "value": None, "error": "MemoryError: no"}
    assert flags([record(rows=[broken])]) == {"errors": "1 of 1 cells: MemoryError: no"}
    assert flags([gap("error", "nan weights")])["errors"] == "1 of 1 cells: nan weights"
    assert "errors" not in flags([record(), gap("skipped", "cannot be", attack="ip-adapter")])


def test_a_countermeasure_that_helps_the_clean_control_as_much() -> None:
    plain = [record(subject=s, leak=0.3, control=0.5) for s in ("ada", "boris")]
    helped = [record(subject=s, attack="jpeg+lora", leak=0.4, control=0.6) for s in ("ada", "boris")]
    assert flags(plain + helped) == {"control helped as much": "jpeg+lora against lora: leak +0.10, clean control +0.10"}
    broke = [record(subject=s, attack="jpeg+lora", leak=0.45, control=0.51) for s in ("ada", "boris")]
    assert flags(plain + broke) == {}


def test_a_stronger_attack_that_does_worse() -> None:
    plain = [record(subject=s, leak=0.4) for s in ("ada", "boris", "carl")]
    longer = [record(subject=s, attack="longer+lora", leak=0.2) for s in ("ada", "boris", "carl")]
    name = "stronger attack does worse"
    assert flags(plain + longer) == {name: "protection under longer+lora is 0.42 higher than under lora"}
    assert flags([record(subject=r["cell"]["subject"], leak=0.2) for r in plain] + longer) == {}
    other = [record(subject=s, attack="dreambooth", leak=0.2) for s in ("ada", "boris", "carl")]
    assert flags(plain + other) == {}  # neither is the other one with something added
    assert name in flags(plain + other, standard=("lora",), strong=("lora", "dreambooth"))
    mixed = [record(leak=0.4), record(subject="boris", leak=0.2), record(subject="carl", leak=0.4)]
    mixed += [record(attack="longer+lora", leak=0.1), record(subject="boris", attack="longer+lora", leak=0.25)]
    mixed += [record(subject="carl", attack="longer+lora", leak=0.4)]
    assert name not in flags(mixed)  # the interval holds 0


@pytest.mark.parametrize(
    ("attack", "other", "stronger"),
    [
        ("jpeg+longer+lora", "jpeg+lora", True),
        ("jpeg+longer+lora@identifier", "longer+lora", True),
        ("lora@identifier", "lora", True),
        ("lora", "lora", False),
        ("jpeg+lora", "blur+lora", False),
        ("lora@identifier", "lora@template", False),
        ("longer+jpeg+lora", "jpeg+longer+lora", False),
    ],
)
def test_which_attack_is_another_with_something_added(attack, other, stronger) -> None:
    assert is_stronger(attack, other) is stronger


def test_identity_that_moved_alone() -> None:
    same = {"detected": (1.0, 1.0), "alignment": (0.88, 0.9)}
    assert flags([record(shares=same)]) == {"identity moved alone": "under lora"}
    assert flags([record(shares=same | {"alignment": (0.6, 0.9)})]) == {}
    assert flags([record(shares=same, leak=0.55)]) == {}  # it did not move


def test_judges_that_disagree() -> None:
    other = [{"metric": "identity:b", "set": "attacked", "index": 9, "value": 3.0, "error": ""}]
    found = flags([record(rows=other), record(subject="boris")])
    assert found["judges disagree"].startswith("1 of 2 cells, most for ada under lora: 0.84 and -1.12")


def test_signs_that_flip_between_seeds() -> None:
    assert flags([record(leak=0.4, seed=0), record(leak=0.7, seed=1)]) == {"sign flips between seeds": "lora: seed 0 +0.42, seed 1 -0.21"}
    assert flags([record(leak=0.4, seed=0), record(leak=0.55, seed=1)]) == {}
