from __future__ import annotations

import json
from io import StringIO

import pytest
from persbench.leaderboard.aggregate import read_records, score
from persbench.leaderboard.terminal import print_leaderboard
from rich.console import Console

from persbench.errors import PersbenchError


def record(method: str = "m", subject: str = "ada", attack: str = "lora", leak: float = 0.2, control: float = 0.6, **more) -> dict:
    """A record with two judges who see the same, and one bystander."""
    means = {"attacked": leak, "control": control, "floor": 0.1}
    means |= {"bystander:petra:attacked": 0.5, "bystander:petra:control": 0.6, "bystander:petra:floor": 0.1}
    rows = [
        {"metric": f"identity:{judge}", "set": label, "index": i, "value": value + shift, "error": ""}
        for label, value in (means | more.pop("sets", {})).items()
        for judge in ("a", "b")
        for i, shift in enumerate((-0.05, 0.05))
    ]
    rows += more.pop("rows", [])
    cell = {
        "method": method,
        "attack": attack,
        "subject": subject,
        "seed": 0,
        "track": "avatars",
        "base": "",
        "options": [],
        "budget": None,
    }
    return {"cell": cell | more, "rows": rows, "margin": 0.25, "stages": {"protect": {"seconds": 3.0, "peak_mib": 100.0}}}


def test_scores_by_hand() -> None:
    found = score(record())
    # Floor: pictures of 0.05 and 0.15 with mean 0.1; the lower one counts as the mean.
    assert (found.leak, found.control, found.floor) == pytest.approx((0.2, 0.6, 0.125))
    assert found.protection == pytest.approx(0.4 / 0.475)
    assert found.shown == 0
    assert found.bystanders == {"petra": pytest.approx(1 - 0.1 / 0.475)}
    assert not found.void
    assert found.protect_seconds == 3.0


def test_a_picture_unlike_the_subject_cannot_hide_one_that_shows_her() -> None:
    split = {"metric": "", "set": "attacked", "error": ""}
    rows = [split | {"metric": f"identity:{judge}", "index": i, "value": v} for judge in "ab" for i, v in ((2, -0.9), (3, 0.6))]
    found = score(record(rows=rows))
    assert found.leak == pytest.approx((0.15 + 0.25 + 0.1 + 0.6) / 4)  # not (0.15 + 0.25 - 0.9 + 0.6) / 4
    assert found.shown == pytest.approx(1 / 4)


def test_a_picture_without_anybody_of_the_class_counts_as_the_floor() -> None:
    seen = [{"metric": "detected", "set": "attacked", "index": i, "value": v, "error": ""} for i, v in enumerate((0.0, 1.0))]
    found = score(record(leak=0.5, rows=seen))
    assert found.leak == pytest.approx((0.1 + 0.55) / 2)  # 0.45 and 0.55 to the judges; the first shows a robot
    assert (found.shown, found.detected, found.leak_seen) == (0.5, 0.5, pytest.approx(0.55))
    seen[0] |= {"value": None, "error": "out of memory"}
    broken = score(record(leak=0.5, rows=seen))
    assert (broken.leak, broken.leak_seen, broken.protection, broken.shown) == (None, None, None, None)
    assert broken.errors == ("out of memory",)


def test_a_control_that_did_not_learn_is_void_not_good() -> None:
    found = score(record(control=0.3))
    assert found.void
    assert found.protection is None


def test_error_rows_are_errors_never_scores() -> None:
    found = score(record(rows=[{"metric": "alignment", "set": "", "index": 0, "value": None, "error": "MemoryError: no"}]))
    assert found.errors == ("MemoryError: no",)
    assert found.alignment is None
    assert found.protection == pytest.approx(0.4 / 0.475)


def test_ranking_is_by_protection_and_the_worst_case_is_per_subject() -> None:
    records = [
        record("good", "ada", leak=0.1),
        record("good", "boris", leak=0.2),
        record("good", "ada", "jpeg+lora", leak=0.4),
        record("good", "boris", "jpeg+lora", leak=0.1),
        record("bad", "ada", leak=0.6),
    ]
    lines = rank([score(r) for r in records])
    assert [(each.method, each.attack) for each in lines] == [
        ("good", "lora"), ("good", "jpeg+lora"), ("good", "worst of 2"), ("bad", "lora"),
    ]  # fmt: skip
    worst = lines[2].protection
    assert worst is not None
    assert worst.mean == pytest.approx((0.2 + 0.4) / 0.475 / 2)
    assert lines[0].protection is not None
    assert lines[0].protection.mean == pytest.approx((0.475 + 0.4) / 0.475 / 2)


def test_variants_of_a_method_are_lines_of_their_own() -> None:
    records = [record(), record(options=[["m", [["steps", "9"]]]])]
    assert {each.method for each in rank([score(r) for r in records])} == {"m", "m (m.steps=9)"}


def test_flags() -> None:
    judges = [{"metric": "identity:b", "set": "attacked", "index": 9, "value": 3.0, "error": ""}]
    lines = rank([score(record("split", rows=judges)), score(record("void", control=0.2))])
    flags = {each.method: each.flags for each in lines}
    assert flags == {"split": ("judges disagree",), "void": ("void controls",)}


def test_page_escapes_what_comes_from_records(tmp_path) -> None:
    scores = [score(record("<script>alert(1)</script>"))]
    write_page(tmp_path / "a" / "index.html", rank(scores), scores, ["these are & not"])
    text = (tmp_path / "a" / "index.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "&amp; not" in text


def test_terminal_shows_every_line() -> None:
    stream = StringIO()
    print_leaderboard(Console(file=stream, width=200), rank([score(record())]), ["not SD numbers"])
    assert "0.84" in stream.getvalue()
    assert "not SD numbers" in stream.getvalue()


def test_records_that_are_missing_or_broken_are_one_clear_error(tmp_path) -> None:
    with pytest.raises(PersbenchError, match="no records"):
        read_records(tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text("{")
    with pytest.raises(PersbenchError, match=r"a.json is not JSON"):
        read_records(tmp_path)
    (tmp_path / "records" / "a.json").write_text(json.dumps(record()))
    assert len(read_records(tmp_path)) == 1
