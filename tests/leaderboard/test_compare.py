from __future__ import annotations

import pytest
from persbench.leaderboard.compare import compare, find_rows
from PIL import Image
from synthetic import board, record, write

from persbench.errors import PersbenchError, UnknownNameError
from persbench.stats import holm

SUBJECTS = ("ada", "boris", "carl", "dora", "emre", "fay")


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Under lora the first is better by 0.1 of leak for all six, under jpeg+lora both are the same, but for fay."""
    found = []
    for number, subject in enumerate(SUBJECTS):
        leak = 0.2 + 0.02 * number
        found += [record("a", subject, "lora", leak=leak), record("b", subject, "lora", leak=leak + 0.1)]
        found += [record("a", subject, "jpeg+lora", leak=leak + 0.2), record("b", subject, "jpeg+lora", leak=leak + 0.2)]
    found += [record("b", "gus", "lora")]  # no partner
    return [r | {"pictures": {}} if r["cell"]["subject"] == "carl" else r for r in found]


def test_differences_are_paired_and_corrected(records) -> None:
    found = compare(*find_rows([board(records)], "a", "b"))
    plain, purified = found.attacks
    assert (plain.attack, purified.attack) == ("lora", "jpeg+lora")
    assert plain.difference.interval.mean == pytest.approx(0.1 / 0.475)
    assert plain.difference.interval.subjects == 6
    assert plain.difference.p == pytest.approx(2 / 2**6)
    assert (purified.difference.interval.mean, purified.difference.p) == (pytest.approx(0), 1)
    assert [plain.corrected, purified.corrected] == holm([plain.difference.p, purified.difference.p])
    assert found.worst is not None and found.worst.interval.mean == pytest.approx(0, abs=1e-9)
    assert found.worst_by_subject["ada"] == ((pytest.approx(0.2 / 0.475), "jpeg+lora"), (pytest.approx(0.2 / 0.475), "jpeg+lora"))
    assert {one.attack for one, _ in found.cells[:6]} == {"lora"}
    assert all(one.subject != "gus" for one, _ in found.cells)


def test_what_cannot_be_compared_says_why(records) -> None:
    boards = [board(records), board([record("c", track="photos"), record("d", "zoe", track="photos")])]
    with pytest.raises(UnknownNameError, match="no row 'e' on the leaderboard"):
        find_rows(boards, "a", "e")
    with pytest.raises(PersbenchError, match="never run on the same track"):
        find_rows(boards, "a", "c")
    with pytest.raises(PersbenchError, match="no subject, attack and seed in common"):
        compare(*find_rows(boards, "c", "d"))


def test_command_shows_differences_and_where_pictures_lie(records, tmp_path, capsys, monkeypatch) -> None:
    from persbench.cli.compare import compare as command

    monkeypatch.setenv("COLUMNS", "80")
    output = write(tmp_path, records)
    for key in ("a-ada-lora-attacked", "b-ada-lora-attacked", "a-ada-lora-control"):
        (output / "store" / "generate" / key).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(output / "store" / "generate" / key / "picture-000.png")
    command("a", "b", output, largest=1, sheet=None, debug=False)
    text = capsys.readouterr().out
    assert "protection of a minus that of b" in text
    assert "0.21 [0.21, 0.21]" in text
    assert "under lora, seed 0:" in text
    assert max(map(len, (line for line in text.splitlines() if str(tmp_path) not in line))) <= 80
    command("a", "b", output, largest=6, sheet=None, debug=False)
    text = capsys.readouterr().out
    assert str(output / "store" / "generate" / "b-ada-lora-attacked") + "\n" in text
    assert "b-boris-lora-attacked  (no longer in the store)" in text
    with pytest.raises(PersbenchError, match="no photos given"):
        command("a", "b", output, largest=6, sheet=tmp_path / "sheet.png", debug=False)


def test_sheet_of_the_largest_differences(tmp_path) -> None:
    from persbench.cli.compare import compare as command

    output = write(tmp_path, [record("a", leak=0.2), record("b", leak=0.5)])
    for key in ("a-ada-lora-attacked", "b-ada-lora-attacked", "a-ada-lora-control"):
        (output / "store" / "generate" / key).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(output / "store" / "generate" / key / "picture-000.png")
    command("a", "b", output, largest=3, sheet=tmp_path / "sheet.png", debug=False)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (24, 64)  # three rows of a picture of 16 and gaps of 4
