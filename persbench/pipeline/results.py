"""What a run leaves for its reader: a record file a cell, and a note of a finished run that answers the same request at once."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from persbench import registry

from .spec import Cell
from .store import digest, write_atomically


@dataclass(frozen=True)
class Result:
    """A cell that ran: its record and where it lies, or why there is none."""

    cell: Cell
    record: dict[str, Any] | None
    path: Path | None
    error: str = ""
    skipped: str = ""


def record_path(output: Path, cell: Cell) -> Path:
    """Where the record of a cell lies."""
    return output / "records" / f"{digest(cell.to_dict())[:16]}.json"


def save(output: Path, cell: Cell, artefact: Path | None = None, error: str = "", skipped: str = "") -> Result:
    """Write the record file of a cell from its artefact in the store, or the reason why there is none."""
    path = record_path(output, cell)
    if artefact:
        text = (artefact / "record.json").read_text("utf-8")
        result = Result(cell, json.loads(text) | {"sheet": str(artefact / "pictures.png")}, path)
    else:
        text = no_record(cell, "skipped" if skipped else "error", skipped or error)
        result = Result(cell, None, path, error, skipped)
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomically(path, text)
    return result


def no_record(cell: Cell, status: str, reason: str) -> str:
    """What stands in a cell's place on the leaderboard when there is nothing to score: "skipped" or "error", and why."""
    return json.dumps({"cell": cell.to_dict(), "status": status, "reason": reason, "rows": []}, indent=1, sort_keys=True)


# --- finished runs


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of all files below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _files(entry.path)
            elif entry.is_file():
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns


def fingerprint(bases: Iterable[str]) -> str:
    """Digest of sizes and times of everything that keys are made from: code and data of persbench and of plug-ins, and base models.

    No file is read and no plug-in imported. What it cannot see is a file changed without a change of its size and time.
    """
    modules = {point.module for kind in registry.BASES for point in entry_points(group=f"persbench.{kind}")} | {"persbench"}
    folders = {Path(base).resolve() for base in bases if base}
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            continue
        if found and found.origin:
            folders.add(Path(found.origin).resolve().parent)
    roots = sorted(folder for folder in folders if not any(parent in folders for parent in folder.parents))
    packages = sorted({entry for entry in sys.path if Path(entry).name.endswith("-packages") and Path(entry).is_dir()})
    installed = [(entry, Path(entry).stat().st_mtime_ns) for entry in packages]  # changes when something is installed
    return digest([sorted(file for root in roots if root.is_dir() for file in _files(str(root))), installed])


def finished_path(output: Path, request: Mapping[str, Any]) -> Path:
    """Where the note of a finished run lies."""
    return output / "finished" / f"{digest(request)[:16]}.json"


def note_finished(output: Path, request: Mapping[str, Any], stamp: str, results: Sequence[Result]) -> None:
    """Write down that a run has a record, or a reason to skip, for every cell; `stamp`: the fingerprint from before it began."""
    cells: list[dict[str, Any]] = []
    for result in results:
        assert result.path
        entry: dict[str, Any] = {"cell": result.cell.to_dict(), "size": result.path.stat().st_size}
        cells.append(entry | ({"skipped": result.skipped} if result.record is None else {"sheet": result.record["sheet"]}))
    write_atomically(finished_path(output, request), json.dumps({"fingerprint": stamp, "cells": cells}))


def finished(output: Path, request: Mapping[str, Any], stamp: str) -> list[Result] | None:
    """The results of a finished run, if code, data and records are as they were; else None. Records are not hashed again."""
    try:
        note = json.loads(finished_path(output, request).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if note["fingerprint"] != stamp:
        return None
    results = []
    for entry in note["cells"]:
        cell = Cell.from_dict(entry["cell"])
        path = record_path(output, cell)
        try:
            data = path.read_bytes()
            if len(data) != entry["size"]:
                return None
            if "skipped" in entry:
                results.append(Result(cell, None, path, skipped=entry["skipped"]))
            elif Path(entry["sheet"]).exists():
                results.append(Result(cell, json.loads(data) | {"sheet": entry["sheet"]}, path))
            else:
                return None
        except (OSError, ValueError):
            return None
    return results
