from __future__ import annotations

import json
from io import StringIO

import pytest
from persbench.leaderboard.reported import read_reported
from persbench.leaderboard.terminal import SHEETS, TABLES, print_leaderboard, print_run
from rich.console import Console
from synthetic import board, gap, record

from persbench.pipeline.results import Result
from persbench.pipeline.spec import Cell


def shown(records: list[dict], width: int, **more) -> str:
    stream = StringIO()
    print_leaderboard(Console(file=stream, width=width), [board(records)], {"avatars": "not SD numbers"}, **more)
    return stream.getvalue()


@pytest.fixture
def records() -> list[dict]:
    """Nine methods with long names under two attacks, a skip and an error."""
    names = [f"persguard-universal-{number}" for number in range(9)]
    found = [record(n, s, a, leak=0.15 + 0.04 * i) for i, n in enumerate(names) for s in ("ada", "boris") for a in ("lora", "longer+lora")]
    found += [gap("skipped", "no image encoder here", name, attack="ip-adapter") for name in names]
    return [*found, gap("error", "[red]protect ada[/]: out of memory", "other")]


def test_eighty_columns_show_rank_threat_worst_case_and_flags(records) -> None:
    text = shown(records, 80)
    assert max(map(len, text.splitlines())) <= 80
    head = next(line for line in text.splitlines() if "worst case" in line)
    assert all(word in head for word in ("#", "method", "threat", "under", "keep", "flags"))
    first = next(line for line in text.splitlines() if "persguard" in line)
    assert "model" in first and "0.95 [0.95, 0.95]" in first
    assert "seconds" not in head


def test_wide_terminals_show_more(records) -> None:
    text = shown(records, 160)
    head = next(line for line in text.splitlines() if "worst case" in line)
    assert all(word in head for word in ("fails by", "levels", "PSNR", "seconds", "flags"))
    assert "identity lost" in text


def test_skips_and_errors_stand_below_with_their_reasons(records) -> None:
    text = shown(records, 200)
    assert "skipped 9 cells (persguard-universal-0, " in text
    assert "-2 and 6 more under ip-adapter): no image encoder here" in text
    assert "error 1 cell (other under lora): [red]protect ada[/]: out of memory" in text  # as it is, not as markup
    assert "not SD numbers" in text


def test_details_show_every_attack_and_where_flags_were_seen() -> None:
    records = [record(leak=0.4), record(attack="longer+lora", leak=0.2), record(attack="jpeg+lora", control=0.2)]
    text = shown(records, 120, details=True)
    assert "· longer+lora" in text
    assert next(line for line in text.splitlines() if "· jpeg+lora" in line).split()[2] == "void"
    assert "m: void controls: 1 of 1 under jpeg+lora" in text
    assert "· longer+lora" not in shown(records, 120)


def test_reported_numbers_have_tables_of_their_own() -> None:
    text = shown([record()], 80, reported=read_reported())
    measured, reported = text.split("reported · APDM, protection")
    assert "0.1167" in reported and "0.1167" not in measured
    assert "DINO ↓" in reported
    assert "not measured here" in reported


@pytest.mark.parametrize("methods", [TABLES, TABLES + 1])
def test_a_large_run_ends_with_a_leaderboard_and_a_few_places_of_pictures(tmp_path, methods) -> None:
    def result(name: str, found: dict) -> Result:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(found))
        scored = found | {"sheet": f"{name}.png"} if found.get("status", "ok") == "ok" else None
        return Result(Cell("avatars", "", name, "lora", "ada", 0), scored, path, found.get("reason", ""))

    results = [result(name := f"method-{number}", record(name)) for number in range(methods - 1)]
    results.append(result("other", gap("error", "out of memory", "other")))
    stream = StringIO()
    print_run(Console(file=stream, width=80), results, tmp_path)
    text = stream.getvalue()
    assert ("How well did" in text) == (methods <= TABLES)
    assert ("worst case" in text) == (methods > TABLES)
    assert "out of memory" in text
    assert text.count("pictures: method-") == SHEETS
    assert f"and {methods - 1 - SHEETS} more" in text
