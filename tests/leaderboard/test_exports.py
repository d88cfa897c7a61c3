from __future__ import annotations

import csv
import json
import re

import pytest
from persbench.leaderboard.aggregate import MEANS
from persbench.leaderboard.exports import export_boards, measured, reported
from persbench.leaderboard.reported import read_reported
from synthetic import board, gap, record

from persbench.errors import PersbenchError


@pytest.fixture(scope="module")
def boards():
    """A board with a name that every format must escape, a void, a skip and an error."""
    return [
        board(
            [
                *(record("aspl", s, a, leak=0.3, levels=8, allowed=8.0) for s in ("ada", "boris") for a in ("lora", "jpeg+lora")),
                *(record("odd|_&%<b>", s, a) for s in ("ada", "boris") for a in ("lora", "jpeg+lora")),
                record("void", control=0.2),
                gap("skipped", "no encoder", "aspl", attack="ip-adapter"),
                gap("error", "out of memory", "aspl", "carl"),
            ]
        )
    ]


def same(read: list[dict], wanted: list[dict]) -> None:
    assert [list(line) for line in read] == [list(line) for line in wanted]
    for one, other in zip(read, wanted, strict=True):
        assert one == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in other.items()}


def test_the_flat_table_has_worst_cases_and_every_attack(boards) -> None:
    lines = {(line["name"], line["attack"]): line for line in measured(boards)}
    worst, attack = lines["aspl", "worst case"], lines["aspl", "jpeg+lora"]
    assert (worst["rank"], worst["protection_mean"], worst["protection_subjects"]) == (2, pytest.approx(0.3 / 0.475), 2)
    assert (attack["rank"], attack["cells"], attack["budget_levels"]) == (None, 2, 8.0)
    assert (worst["skipped_cells"], worst["error_cells"], worst["threat_model"]) == (1, 1, "image")
    assert (lines["void", "lora"]["protection_mean"], lines["void", "lora"]["void_cells"]) == (None, 1)
    assert set(MEANS) <= set(worst)


def test_csv_is_read_back_with_numbers(boards, tmp_path) -> None:
    papers = read_reported()
    for file, wanted in zip(export_boards(tmp_path / "b.csv", boards, papers), (measured(boards), reported(papers)), strict=True):
        with file.open(newline="") as stream:
            read = list(csv.DictReader(stream))
        for line, known in zip(read, wanted, strict=True):
            line.update({name: float(line[name]) for name, value in known.items() if isinstance(value, (int, float))})
        same(read, [{name: "" if value is None else value for name, value in line.items()} for line in wanted])


def test_parquet_is_read_back_with_types(boards, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    papers = read_reported()
    first, second = export_boards(tmp_path / "b.parquet", boards, papers)
    assert second.name == "b-reported.parquet"
    table = parquet.read_table(first)
    same(table.to_pylist(), measured(boards))
    same(parquet.read_table(second).to_pylist(), reported(papers))
    types = {field.name: str(field.type) for field in table.schema}
    assert {types[name] for name in MEANS} == {"double"}
    assert (types["rank"], types["cells"], types["protection_subjects"], types["void_cells"]) == ("int64",) * 4
    assert (types["method"], types["flags"], types["quality"]) == ("string", "string", "double")  # also where all are missing


def test_json_keeps_measured_and_reported_apart(boards, tmp_path) -> None:
    papers = read_reported()
    (file,) = export_boards(tmp_path / "deep" / "b.json", boards, papers)
    read = json.loads(file.read_text())
    same(read["measured"], measured(boards))
    same(read["reported"], reported(papers))
    assert {line["status"] for line in read["measured"]} == {"measured"}


def cells_of(text: str, separator: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(separator, line)] for line in text.splitlines()]


def check_summary(rows: list[list[str]], odd: str) -> None:
    head, *lines = rows
    found = {line[1]: dict(zip(head, line, strict=True)) for line in lines}
    assert next(iter(found)) == odd
    mean, low, high = map(float, re.fullmatch(r"([-\d.]+) \[([-\d.]+), ([-\d.]+)\]", found["aspl"]["worst case"]).groups())
    assert (mean, low, high) == (0.63, 0.63, 0.63)
    assert found["aspl"]["threat"] == "image"
    assert int(found["aspl"]["levels"]) == 8
    assert found["void"]["flags"].startswith("void controls")


def test_markdown_is_read_back(boards, tmp_path) -> None:
    (file,) = export_boards(tmp_path / "b.md", boards, read_reported())
    text = file.read_text("utf-8")
    first, *others = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M)
    rows = cells_of(re.sub(r"^\||\|$", "", first, flags=re.M), r"(?<!\\)\|")
    assert all(re.fullmatch("-+", cell) for cell in rows[1])
    check_summary([rows[0], *rows[2:]], r"odd\|_&%&lt;b>")
    assert len(others) == 3 and text.count("Reported, not measured here") == 3


def test_latex_is_read_back(boards, tmp_path) -> None:
    (file,) = export_boards(tmp_path / "b.tex", boards, read_reported())
    text = file.read_text("utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 4
    assert text.isascii()
    head, body = re.search(r"\\toprule\n(.*?)\\\\\n\\midrule\n(.*?)\\bottomrule", text, flags=re.S).groups()
    rows = cells_of(head + "\n" + body.replace(r"\\", ""), r"(?<!\\)&")
    rows = [[cell.replace("\\#", "#") for cell in row] for row in rows if row != [""]]
    check_summary(rows, r"odd|\_\&\%\ensuremath{<}b\ensuremath{>}")


def test_what_cannot_be_written_is_one_clear_error(boards, tmp_path) -> None:
    with pytest.raises(PersbenchError, match="the suffix must be one of"):
        export_boards(tmp_path / "b.xls", boards)
    (tmp_path / "file").write_text("")
    with pytest.raises(PersbenchError, match="cannot write"):
        export_boards(tmp_path / "file" / "b.csv", boards)


def test_reported_numbers_are_those_of_the_papers_and_can_be_imported(tmp_path) -> None:
    papers = read_reported()
    lines = {(line["table"], line["method"], line["metric"]): line["value"] for line in reported(papers)}
    assert lines["APDM, protection", "APDM", "DINO"] == 0.1167
    assert lines["DiffAdvPerturbationBench", "FSMG", "LPIPS"] == 0.265
    assert {line["status"] for line in reported(papers)} == {"reported"}
    assert all("arXiv" in paper.source for paper in papers)
    own = tmp_path / "own.json"
    table = {"title": "T", "source": "S", "protocol": "P", "metrics": [{"name": "x", "protects": "lower"}]}
    own.write_text(json.dumps([table | {"rows": [{"method": "m", "threat_model": "image", "values": {"x": 1}}]}]))
    assert read_reported(str(own))[0].rows[0].values == {"x": 1.0}
    own.write_text(json.dumps([table | {"rows": [{"method": "m", "threat_model": "image", "values": {"y": 1}}]}]))
    with pytest.raises(PersbenchError, match="m of 'T' has no such metric: y"):
        read_reported(str(own))
    own.write_text(json.dumps([table | {"rows": [{"method": "m", "threat_model": "photo", "values": {"x": 1}}]}]))
    with pytest.raises(PersbenchError, match=r"0\.rows\.0\.threat_model"):
        read_reported(str(own))
    with pytest.raises(PersbenchError, match="give 'papers' or a JSON file"):
        read_reported(str(tmp_path / "none.json"))
