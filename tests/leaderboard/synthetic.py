"""Small records as the pipeline writes them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persbench.leaderboard.aggregate import Board, boards

_CELL: dict[str, Any] = {"seed": 0, "track": "avatars", "base": "", "options": [], "budget": None}


def record(
    method: str = "m",
    subject: str = "ada",
    attack: str = "lora",
    leak: float = 0.2,
    control: float = 0.6,
    levels: float | None = None,
    allowed: float | None = None,
    threat: str = "model",
    shares: dict[str, tuple[float, float]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A record with two judges who see the same, and one bystander.

    `levels`: how far photos changed; `allowed`: the budget (an image-level method); `shares`: values of "detected", "alignment", ...
    of the attacked and the control pictures. What is left is put into the cell; `rows` are added to the rows, `sets` to the identity means.
    """
    means = {"attacked": leak, "control": control, "floor": 0.1}
    means |= {"bystander:petra:attacked": 0.5, "bystander:petra:control": 0.6, "bystander:petra:floor": 0.1}
    rows = [
        {"metric": f"identity:{judge}", "set": label, "index": i, "value": value + shift, "error": ""}
        for label, value in (means | more.pop("sets", {})).items()
        for judge in ("a", "b")
        for i, shift in enumerate((-0.05, 0.05))
    ]
    for metric, values in (shares or {}).items():
        rows += [
            {"metric": metric, "set": label, "index": i, "value": value, "error": ""}
            for label, value in zip(("attacked", "control"), values, strict=True)
            for i in range(2)
        ]
    if levels is not None:
        rows += [{"metric": "linf_levels", "set": "released", "index": 0, "value": levels, "error": ""}]
    rows += more.pop("rows", [])
    cell = _CELL | {"method": method, "attack": attack, "subject": subject}
    changed = "protect:0" if threat == "model" and allowed is None else "base:0"
    configs: dict[str, Any] = {"attacked:personalize": {"model": changed}}
    if method != "none":
        configs["protect"] = {"budget_levels": allowed}
    return {
        "cell": cell | more,
        "rows": rows,
        "margin": 0.25,
        "configs": configs,
        "stages": {"protect": {"seconds": 3.0, "peak_mib": 100.0}, "attacked:personalize": {"seconds": 2.0, "peak_mib": 90.0}},
        "pictures": {label: f"{method}-{subject}-{attack}-{label}" for label in ("attacked", "control", "floor")},
    }


def gap(status: str, reason: str, method: str = "m", subject: str = "ada", attack: str = "lora", **more: Any) -> dict[str, Any]:
    """A record of a cell without a score."""
    cell = _CELL | {"method": method, "attack": attack, "subject": subject}
    return {"cell": cell | more, "status": status, "reason": reason, "rows": []}


def board(records: Iterable[dict[str, Any]], **sets: tuple[str, ...]) -> Board:
    """The only board of some records; `sets` are attack sets of the track."""
    (found,) = boards([(Path(f"{number}.json"), each) for number, each in enumerate(records)], lambda track: sets)
    return found


def write(folder: Path, records: Iterable[dict[str, Any]]) -> Path:
    """An output folder with these records."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(records):
        (folder / "records" / f"{number:03d}.json").write_text(json.dumps(each), "utf-8")
    return folder
