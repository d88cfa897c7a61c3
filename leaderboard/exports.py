"""The leaderboard as files: CSV, Parquet and JSON for programs (numbers stay numbers), Markdown and LaTeX (booktabs) for readers.

CSV and Parquet hold one table, so that what papers report goes to a second file, `NAME-reported.csv`; the others hold both, apart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persbench.errors import PersbenchError
from persbench.stats import Interval

from .aggregate import Board, Entry, Row
from .reported import Paper
from .terminal import interval, number, percent, place

WORST = "worst case"  # in place of an attack


def measured(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """A flat table: for each row of each board its worst case, then every attack. None where there is no number."""
    return [line for board in boards for row in board.rows for line in _row_lines(board, row)]


def _row_lines(board: Board, row: Row) -> Iterable[dict[str, Any]]:
    standing = board.standing(row)
    ranks = {"rank": standing.rank, "rank_within": standing.rank_within}
    yield _line(board, row, WORST, row.total) | {
        **_numbers("protection", standing.protection),
        "failure_mode": row.entries[standing.weakest].failure_mode if standing.weakest else None,
        "weakest_attack": standing.weakest or None,
        **{f"{name}{end}": getattr(rank, key) if rank else None for name, rank in ranks.items() for end, key in _RANK_ENDS},
    }
    for attack, entry in row.entries.items():
        yield _line(board, row, attack, entry)


_RANK_ENDS = (("", "place"), ("_low", "low"), ("_high", "high"))


def _line(board: Board, row: Row, attack: str, entry: Entry) -> dict[str, Any]:
    return {
        "status": "measured",
        "board": board.key,
        "track": board.track,
        "base": board.base or "the track's own",
        "precision": board.precision,
        "attack_set": board.attack_set,
        "name": row.name,
        "method": row.method,
        "variant": row.variant,
        "threat_model": row.threat_model,
        "budget_levels": row.budget_levels,
        "group_size": row.group_size,
        "attack": attack,
        "weakest_attack": None,
        **{f"{name}{end}": None for name in ("rank", "rank_within") for end, _ in _RANK_ENDS},
        **_numbers("protection", entry.protection),
        "failure_mode": entry.failure_mode,
        **_numbers("bystanders", entry.bystanders),
        **entry.means,
        "cells": len(entry.scores) + len(entry.gaps),
        "void_cells": entry.voids,
        "skipped_cells": len(entry.skipped),
        "error_cells": len(entry.failed),
        "flags": "; ".join(raised.name for raised in row.flags),
    }


def _numbers(name: str, found: Interval | None) -> dict[str, Any]:
    return {f"{name}_{key}": getattr(found, key, None) for key in ("mean", "low", "high", "subjects")}


def reported(papers: Sequence[Paper]) -> list[dict[str, Any]]:
    """A flat table: one line for each number that a paper reports."""
    return [
        {
            "status": "reported",
            "table": paper.title,
            "source": paper.source,
            "protocol": paper.protocol,
            "method": row.method,
            "plugin": row.plugin,
            "threat_model": row.threat_model,
            "metric": metric.name,
            "protects": metric.protects,
            "value": row.values[metric.name],
        }
        for paper in papers
        for row in paper.rows
        for metric in paper.metrics
        if metric.name in row.values
    ]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-reported{path.suffix}")


def _csv(path: Path, boards: Sequence[Board], papers: Sequence[Paper]) -> list[Path]:
    written = []
    for file, lines in ((path, measured(boards)), (_beside(path), reported(papers))):
        if lines:
            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, list(lines[0]))
                writer.writeheader()
                writer.writerows(lines)
            written.append(file)
    return written


_WHOLE = ("group_size", "cells", "subjects")  # names, or their ends, of columns of whole numbers
_TEXT = (
    "status board track base precision attack_set name method variant threat_model attack weakest_attack failure_mode flags"
    " table source protocol plugin metric protects"
).split()


def _parquet(path: Path, boards: Sequence[Board], papers: Sequence[Paper]) -> list[Path]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise PersbenchError("Parquet needs pyarrow: pip install 'persbench[export]'") from None

    def kind(name: str) -> pyarrow.DataType:
        if name in _TEXT:
            return pyarrow.string()
        return pyarrow.int64() if name.endswith(_WHOLE) or name.startswith("rank") else pyarrow.float64()

    written = []
    for file, lines in ((path, measured(boards)), (_beside(path), reported(papers))):
        if lines:
            schema = pyarrow.schema([(name, kind(name)) for name in lines[0]])
            parquet.write_table(pyarrow.Table.from_pylist(lines, schema), file)
            written.append(file)
    return written


def _json(path: Path, boards: Sequence[Board], papers: Sequence[Paper]) -> list[Path]:
    content = {"measured": measured(boards), "reported": reported(papers)}
    path.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")
    return [path]


def summary(board: Board) -> list[dict[str, str]]:
    """The rows of a board as a reader wants them, as text."""
    lines = []
    for row in board.rows:
        standing, means = board.standing(row), row.total.means
        lines.append(
            {
                "#": place(standing.rank),
                "method": row.name,
                "threat": row.threat_model,
                "worst case": interval(standing.protection),
                "weakest under": standing.weakest,
                "bystanders keep": interval(row.total.bystanders),
                "class prompts right": percent(means["prior_class"]),
                "levels": number(means["linf_levels"], 0) if means["linf_levels"] else "–",
                "seconds": number(means["protect_seconds"], 0),
                "flags": "; ".join(raised.name for raised in row.flags),
            }
        )
    return lines


def paper_lines(paper: Paper) -> list[dict[str, str]]:
    """The rows of a paper's table, as text."""
    return [
        {"method": row.method, "threat": row.threat_model}
        | {metric.label: "–" if (value := row.values.get(metric.name)) is None else f"{value:g}" for metric in paper.metrics}
        for row in paper.rows
    ]


def _titles(boards: Sequence[Board], papers: Sequence[Paper]) -> Iterable[tuple[str, list[dict[str, str]]]]:
    for board in boards:
        attacks = ", ".join(board.attack_sets[board.attack_set])
        count = len(board.subjects)
        yield f"{board.track}: worst case over {attacks}; {count} subject{'s' * (count != 1)}; board {board.key}", summary(board)
    for paper in papers:
        yield f"Reported, not measured here: {paper.title}. {paper.source}. {paper.protocol}", paper_lines(paper)


def markdown_table(lines: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table of lines (heading -> text); whatever stands in the text stays text."""
    from tabulate import tabulate

    table = [{name: _plain(text) for name, text in line.items()} for line in lines]
    return tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _markdown(path: Path, boards: Sequence[Board], papers: Sequence[Paper]) -> list[Path]:
    parts = [f"{_plain(title)}\n\n{markdown_table(lines)}\n" for title, lines in _titles(boards, papers)]
    path.write_text("\n".join(parts), "utf-8")
    return [path]


def _latex(path: Path, boards: Sequence[Board], papers: Sequence[Paper]) -> list[Path]:
    from tabulate import tabulate

    def symbols(text: str) -> str:
        for sign, command in (("–", "--"), ("↓", r"$\downarrow$"), ("↑", r"$\uparrow$"), ("·", r"$\cdot$")):
            text = text.replace(sign, command)
        return text

    parts = ["% needs \\usepackage{booktabs}"]
    for title, lines in _titles(boards, papers):
        table = symbols(tabulate(lines, headers="keys", tablefmt="latex_booktabs", disable_numparse=True))
        parts.append(f"\\begin{{table}}\n\\caption{{{symbols(_escape(title))}}}\n{table}\n\\end{{table}}")
    path.write_text("\n\n".join(parts) + "\n", "utf-8")
    return [path]


def _escape(text: str) -> str:
    from tabulate import LATEX_ESCAPE_RULES

    return "".join(LATEX_ESCAPE_RULES.get(sign, sign) for sign in text)


WRITERS: dict[str, Callable[[Path, Sequence[Board], Sequence[Paper]], list[Path]]] = {
    ".csv": _csv,
    ".json": _json,
    ".md": _markdown,
    ".parquet": _parquet,
    ".tex": _latex,
}


def check_suffix(path: Path) -> None:
    """Raise PersbenchError unless there is an export of this suffix."""
    if path.suffix not in WRITERS:
        raise PersbenchError(f"cannot export to {path}: the suffix must be one of {', '.join(WRITERS)}")


def export_boards(path: Path, boards: Sequence[Board], papers: Sequence[Paper] = ()) -> list[Path]:
    """Write a file in the format of its suffix; the files written. Raises PersbenchError for another suffix or place."""
    check_suffix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return WRITERS[path.suffix](path, boards, papers)
    except OSError as error:
        raise PersbenchError(f"cannot write {path}: {error.strerror or error}") from None
