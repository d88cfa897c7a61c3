"""What a run would do, without doing it: stages after sharing, what the store has, time and memory from recorded costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from persbench.errors import SkippedCell

from . import costs
from .costs import Cost
from .forms import Forms
from .spec import Cell
from .stages import no_collection
from .store import Store

STAGES = ("protect", "counter", "tamper", "personalize", "generate", "score", "record")


@dataclass(frozen=True)
class Line:
    """All distinct stages of a kind."""

    stage: str
    plugin: str
    wanted: int
    stored: int
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """What is left to do; a record's seconds hold those of its scores."""
        return (self.wanted - self.stored) * self.cost.seconds if self.cost and self.stage != "score" else 0.0


@dataclass(frozen=True)
class Plan:
    """Cells and stages of a run; `alone`: stages if each cell were run with a store of its own."""

    cells: int
    done: int
    skipped: int
    alone: int
    lines: tuple[Line, ...]
    reasons: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Estimated seconds of one worker, as far as costs are recorded."""
        return sum(line.seconds for line in self.lines)

    @property
    def peak_mib(self) -> float:
        """Highest recorded peak among the stages to do."""
        return max((line.cost.peak_mib for line in self.lines if line.cost and line.wanted > line.stored), default=0.0)


def make_plan(cells: Iterable[Cell], store: Store) -> Plan:
    """Plan cells on a store. Raises PersbenchError for what cannot be planned; impossible cells are counted."""
    with no_collection():
        return _make_plan(cells, store)


def _make_plan(cells: Iterable[Cell], store: Store) -> Plan:
    forms = Forms(store)
    stored = {stage: store.keys(stage) for stage in STAGES}
    wanted: Counter[tuple[str, str]] = Counter()
    have: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    count = done = alone = 0
    for cell in cells:
        count += 1
        try:
            found = forms.plan(cell)
        except SkippedCell as reason:
            reasons[str(reason)] += 1
            continue
        alone += found.stages
        for kind, key in found.new:
            wanted[kind] += 1
            if key in stored[kind[0]]:
                have[kind] += 1
        done += found.record in stored["record"]
    known = costs.recorded(store.root)
    lines = tuple(
        Line(*kind, wanted[kind], have[kind], known.get(kind)) for kind in sorted(wanted, key=lambda kind: (STAGES.index(kind[0]), kind))
    )
    return Plan(count, done, sum(reasons.values()), alone, lines, tuple(f"{times} cells: {reason}" for reason, times in reasons.items()))
