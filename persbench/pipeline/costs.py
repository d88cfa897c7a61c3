"""What stages cost, from the manifests of a store: mean seconds and peak memory by stage and plug-in."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .store import MANIFEST

SAMPLE = 1000  # manifests of a stage that are read: enough for a mean, and quick in a store of a million
Kind = tuple[str, str]  # stage, plug-in
GUESSES = {
    "protect": 60.0,
    "personalize": 30.0,
    "tamper": 20.0,
    "generate": 5.0,
    "record": 5.0,
}  # to order work before anything is measured


@dataclass(frozen=True)
class Cost:
    """Mean seconds, and the highest peak in MiB."""

    seconds: float
    peak_mib: float


def recorded(store: Path) -> dict[Kind, Cost]:
    """Costs by stage and plug-in; what was never run is not there."""
    from .stages import PLUGINS, plugin_name

    found: dict[Kind, list[tuple[float, float]]] = defaultdict(list)
    for stage in (*PLUGINS, "generate", "record"):
        for number, path in enumerate((store / stage).glob(f"*/{MANIFEST}")):
            if number == SAMPLE:
                break
            try:
                manifest = json.loads(path.read_text("utf-8"))
                spent = manifest["cost"]
                found[stage, plugin_name(stage, manifest["content"])].append((spent["seconds"], spent["peak_mib"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return {kind: Cost(sum(s for s, _ in costs) / len(costs), max(m for _, m in costs)) for kind, costs in found.items()}


def seconds(costs: dict[Kind, Cost], kind: Kind) -> float:
    """Mean seconds of a stage, or a guess."""
    return costs[kind].seconds if kind in costs else GUESSES.get(kind[0], 1.0)


def memory(costs: dict[Kind, Cost], kinds: Iterable[Kind]) -> float:
    """The highest recorded peak of some stages in MiB; 0 where nothing is recorded."""
    return max((costs[kind].peak_mib for kind in kinds if kind in costs), default=0.0)
