from __future__ import annotations

import json
from pathlib import Path

import pytest
from persbench.leaderboard.aggregate import boards, read_records, score
from synthetic import board, gap, record

from persbench.errors import PersbenchError, UnknownNameError
from persbench.stats import Rank


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


def test_rows_are_ranked_by_the_worst_case_per_subject() -> None:
    found = board(
        [
            record("good", "ada", leak=0.1),
            record("good", "boris", leak=0.2),
            record("good", "ada", "jpeg+lora", leak=0.4),
            record("good", "boris", "jpeg+lora", leak=0.1),
            record("bad", "ada", leak=0.6),
            record("bad", "ada", "jpeg+lora", leak=0.6),
        ]
    )
    good, bad = found.rows
    assert (good.name, bad.name) == ("good", "bad")
    standing = found.standing(good)
    assert standing.by_subject == {"ada": (pytest.approx(0.2 / 0.475), "jpeg+lora"), "boris": (pytest.approx(0.4 / 0.475), "lora")}
    assert standing.protection is not None and standing.protection.mean == pytest.approx((0.2 + 0.4) / 0.475 / 2)
    assert standing.protection.low < standing.protection.mean < standing.protection.high
    assert standing.rank is not None and standing.rank.place == 1
    only = good.entries["lora"].protection
    assert only is not None and only.mean == pytest.approx((0.475 + 0.4) / 0.475 / 2)


def test_a_row_with_fewer_subjects_has_no_rank_and_stands_below_those_with_one() -> None:
    records = [record("m", "ada", leak=0.2), record("m", "boris", leak=0.5), record("cherries", "ada", leak=0.15)]
    records += [record(name, "chen", control=0.2) for name in ("m", "cherries")]  # void, so missing from all
    found = board(records)
    assert [(row.name, found.standing(row).rank) for row in found.rows] == [("m", Rank(1, 1, 1)), ("cherries", None)]


def test_seeds_are_averaged_before_the_worst_case() -> None:
    found = board(
        [
            record(leak=0.1, seed=0),
            record(leak=0.5, seed=1),  # alone it would be the worst
            record(attack="jpeg+lora", leak=0.4, seed=0),
            record(attack="jpeg+lora", leak=0.4, seed=1),
        ]
    )
    assert found.standing(found.rows[0]).by_subject == {"ada": (pytest.approx(0.2 / 0.475), "jpeg+lora")}


def test_a_void_attack_is_no_threat_and_a_failed_one_leaves_the_subject_out() -> None:
    void = board([record(leak=0.4), record(attack="jpeg+lora", leak=0.2, control=0.3)])
    assert void.standing(void.rows[0]).by_subject == {"ada": (pytest.approx(0.2 / 0.475), "lora")}
    failed = board([record(), record(subject="boris"), record(attack="jpeg+lora"), gap("error", "disk full", "m", "boris", "jpeg+lora")])
    row = failed.rows[0]
    assert set(failed.standing(row).by_subject) == {"ada"}
    assert {flag.name: flag.detail for flag in row.flags} == {
        "errors": "1 of 4 cells: disk full",
        "incomplete": "worst case over 1 of 2 subjects",
    }


def test_what_is_skipped_for_all_does_not_count_and_keeps_its_reason() -> None:
    found = board([record(), gap("skipped", "no image encoder", attack="ip-adapter")])
    row = found.rows[0]
    assert found.attack_sets["all"] == ("ip-adapter", "lora")
    assert found.standing(row).attacks == ("lora",)
    assert (found.standing(row).missing, row.flags) == ((), ())
    assert [each.reason for each in row.total.skipped] == ["no image encoder"]
    nothing = board([gap("error", "out of memory")])
    assert nothing.standing(nothing.rows[0]).protection is None


def test_only_equal_track_base_and_protocol_share_a_board() -> None:
    records = [record(), record("other"), record("other", track="photos"), record("other", base="sd15"), record() | {"margin": 0.3}]
    records += [record() | {"protocol": {"guidance": 5.0, "options": {}}}, record(precision="fp16")]
    found = boards([(Path(f"{i}.json"), each) for i, each in enumerate(records)])
    assert sorted(len(each.rows) for each in found) == [1, 1, 1, 1, 1, 2]
    assert [row.name for row in found[0].rows] == ["m", "other"]
    same = boards([(Path(f"{i}.json"), record() | {"protocol": {"options": {"m": {"steps": i}}}}) for i in range(2)])
    assert len(same) == 1  # defaults of methods are their own affair


def test_threat_models_follow_from_the_stages_and_can_be_ranked_apart() -> None:
    found = board(
        [record("photos", leak=0.4, levels=8, allowed=8), record("weights", leak=0.2), record("none", leak=0.6), record("worse", leak=0.5)]
    )
    assert {row.name: row.threat_model for row in found.rows} == {
        "photos": "image", "weights": "model", "worse": "model", "none": "none",
    }  # fmt: skip
    both = record("both", levels=8, allowed=8)
    both["configs"]["attacked:personalize"]["model"] = "protect:0"
    assert score(both).threat_model == "both"
    ranks = {row.name: (found.standing(row).rank, found.standing(row).rank_within) for row in found.rows}
    assert ranks["none"] == (None, None)
    assert [ranks[name][0].place for name in ("weights", "photos", "worse")] == [1, 2, 3]
    assert [ranks[name][1].place for name in ("weights", "photos", "worse")] == [1, 1, 2]
    images = found.view(threat="image")
    assert [(row.name, images.standing(row).rank and images.standing(row).rank.place) for row in images.rows] == [
        ("photos", 1), ("none", None),
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="did you mean 'image'"):
        found.view(threat="images")


def test_variants_budgets_and_group_sizes_are_rows_of_their_own() -> None:
    records = [
        record(),
        record(options=[["m", [["steps", "9"]]], ["other", [["steps", "1"]]]]),  # options of other methods of the run are not its own
        record(group=["ada", "boris"]),
        record("none", group=["ada", "boris"]),
        record("aspl", levels=8, allowed=8.0),
        record("aspl", levels=8, allowed=8.0, budget=8.0, attack="jpeg+lora"),  # the same budget, asked for
        record("aspl", levels=16, allowed=16.0, budget=16.0),
        gap("error", "no", "aspl", "boris", budget=16.0),
    ]
    found = board(records)
    assert {row.name for row in found.rows} == {"none", "m", "m (steps=9)", "m, 2 together", "aspl at 8 levels", "aspl at 16 levels"}
    assert found.row("m, 2 together").group_size == 2
    assert set(found.row("aspl at 8 levels").entries) == {"lora", "jpeg+lora"}
    assert len(found.row("aspl at 16 levels").total.failed) == 1
    with pytest.raises(UnknownNameError, match="did you mean 'm'"):
        found.row("mm")


def test_options_of_an_attack_belong_to_the_attack() -> None:
    found = score(record(attack="jpeg(quality=50)+lora@identifier", options=[["lora", [["steps", "9"]]], ["jpeg", [["quality", "9"]]]]))
    assert (found.attack, found.variant) == ("jpeg(quality=50)+lora(steps=9)@identifier", "")


def test_a_cell_that_was_run_twice_counts_once() -> None:
    more = record(leak=0.2, bystanders=2, sets={f"bystander:omar:{label}": 0.5 for label in ("attacked", "control", "floor")})
    found = board([record(leak=0.2, bystanders=1), more])
    (each,) = found.rows[0].total.scores
    assert set(each.bystanders) == {"petra", "omar"}


def test_attack_sets_decide_what_the_worst_case_is_over() -> None:
    records = [record("a", leak=0.2), record("a", attack="jpeg+lora", leak=0.5), record("b", leak=0.3)]
    shared = board(records)
    assert (shared.attack_set, shared.attack_sets["shared"]) == ("shared", ("lora",))
    assert [row.name for row in shared.rows] == ["a", "b"]
    everything = shared.view("all")
    assert everything.standing(everything.row("b")).missing == ("jpeg+lora",)
    assert everything.standing(everything.row("b")).rank is None
    assert [flag.name for flag in everything.row("b").flags] == ["incomplete"]
    standard = board(records, standard=("lora", "jpeg+lora"), strong=("lora", "jpeg+lora", "diffpure+lora"))
    assert standard.attack_set == "standard"
    with pytest.raises(UnknownNameError, match="did you mean 'strong'"):
        standard.view("strang")


def test_the_clean_control_under_each_attack_stands_on_the_board() -> None:
    found = board([record("a"), record("b"), record("a", attack="jpeg+lora", control=0.3), record("a", "boris", control=0.8)])
    plain, purified = found.controls["lora"], found.controls["jpeg+lora"]
    assert plain.by_subject == {"ada": pytest.approx(0.6), "boris": pytest.approx(0.8)}
    assert (plain.cells, plain.learned, purified.cells, purified.learned) == (2, 2, 1, 0)  # methods share their controls


@pytest.mark.parametrize(
    ("leak", "shares", "mode"),
    [
        (0.58, {}, "not stopped"),
        (0.2, {"detected": (0.2, 1.0)}, "class gone"),
        (0.2, {"detected": (0.9, 1.0), "alignment": (0.3, 0.9)}, "picture or prompt lost"),
        (0.2, {"detected": (0.9, 1.0), "alignment": (0.8, 0.9)}, "identity lost"),
    ],
)
def test_how_the_adversary_fails_is_a_word_beside_the_number(leak, shares, mode) -> None:
    assert board([record(leak=leak, shares=shares)]).rows[0].total.failure_mode == mode


def test_records_that_are_missing_or_broken_are_one_clear_error(tmp_path) -> None:
    with pytest.raises(PersbenchError, match="no records"):
        read_records(tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text("{")
    with pytest.raises(PersbenchError, match=r"a.json is not JSON"):
        read_records(tmp_path)
    (tmp_path / "records" / "a.json").write_text(json.dumps(record()))
    assert len(read_records(tmp_path)) == 1
