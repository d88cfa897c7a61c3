"""The matrix: every distinct stage once, in an order that keeps models loaded; what fails takes only its own cells along."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from persbench.errors import PersbenchError, SkippedCell
from persbench.progress import reporter

from . import costs
from .costs import Cost, Kind
from .executors.base import Executor, Outcome, Task
from .results import Result, save
from .spec import Cell
from .stages import MODELS_KEPT, NO_FILES, READS, Node, Pipelines, no_collection
from .store import Store, StoreError
from .upkeep import Keep, Keeper

LOOKED_AT = 256  # ready tasks among which a worker's next one is chosen


@dataclass
class Waiting:
    """A task that is not done: what it waits for, who waits for it, the cells that end with it, and its place in the order."""

    task: Task
    inputs: set[str]
    pipeline: int
    order: int = 0
    dependents: list[str] = field(default_factory=list)


@dataclass
class Worker:
    """What a worker holds in memory."""

    pipeline: int = -1
    warm: list[str] = field(default_factory=list)

    def took(self, waiting: Waiting) -> None:
        """Remember what a task loads."""
        if waiting.pipeline != self.pipeline:
            self.pipeline, self.warm = waiting.pipeline, []
        if waiting.task.uses and not waiting.task.uses.startswith("base:"):
            self.warm = [*(each for each in self.warm if each != waiting.task.uses), waiting.task.uses][-MODELS_KEPT:]


class Scheduler:
    """Runs cells on an executor and writes their records; one for each run."""

    def __init__(
        self,
        cells: Sequence[Cell],
        store: Store,
        output: Path,
        executor: Executor,
        fail_fast: bool = False,
        debug: bool = False,
        keep: Keep = "all",
    ) -> None:
        self.cells, self.store, self.output, self.executor = cells, store, output, executor
        self.fail_fast, self.debug, self.keeper = fail_fast, debug, Keeper(store, keep)
        self.results: dict[int, Result] = {}
        self.waiting: dict[str, Waiting] = {}
        self.records: dict[str, int] = {}  # key of a record to the cell that ends with it
        self.ready: list[tuple[int, str]] = []
        self.workers: dict[int, Worker] = defaultdict(Worker)
        self.begun: set[int] = set()
        self.chains: dict[str, float] = {}  # key of a stage to the seconds of the longest chain up to it
        self.known: dict[Kind, Cost] = {}

    def run(self) -> list[Result]:
        """Results of all cells in their order; fewer when `fail_fast` stopped them. Whatever interrupts leaves no worker behind."""
        try:
            with no_collection():
                self._plan()
            self._loop()
        finally:
            self.executor.close()
        reporter().cell(len(self.cells), len(self.cells), "done")
        return [self.results[index] for index in sorted(self.results)]

    # --- planning

    def _plan(self) -> None:
        pipelines = Pipelines(self.store)
        groups: dict[int, tuple[int, str]] = {}  # cell to its pipeline and release
        numbers: dict[tuple, int] = {}
        lengths: dict[tuple[int, str], float] = {}
        self.known = costs.recorded(self.store.root)
        for index, cell in enumerate(self.cells):
            try:
                record = pipelines.of(cell).plan(cell)
                key = record.key
                self.keeper.plan(record)
            except PersbenchError as error:
                self._no_record(index, error)
                if self._stopped():
                    return
                continue
            done = self.store.find("record", key) if self.store.has("record", key) else None
            if done and done.manifest.get("complete", True):
                self.results[index] = save(self.output, cell, done.folder)
                continue
            number = numbers.setdefault(pipelines.name(cell), len(numbers))
            self.records[key] = index
            group = groups[index] = (number, record.uses)
            lengths[group] = max(lengths.get(group, 0.0), self._need(record, index, number))
        self.keeper.begin()
        # A release's cells stand together. With several workers the longest come first, so that none is left alone with a long one.
        first: dict[tuple[int, str], int] = {}
        for index, group in groups.items():
            first.setdefault(group, index)
        alone = self.executor.in_process

        def place(index: int) -> tuple:
            group = groups[index]
            return (group[0], 0.0 if alone else -lengths[group], first[group], index)

        order = {index: position for position, index in enumerate(sorted(groups, key=place))}
        self._number(order)
        for key, waiting in self.waiting.items():
            for needed in waiting.inputs:
                self.waiting[needed].dependents.append(key)
            if not waiting.inputs:
                bisect.insort(self.ready, (waiting.order, key))

    def _need(self, node: Node, index: int, pipeline: int, kinds: frozenset[str] = NO_FILES) -> float:
        """Enter a stage that the store does not have, or not with its files of `kinds`, and all that it needs.

        Returns the seconds of the longest chain up to it.
        """
        key = node.key
        if key in self.waiting or (key in self.chains and not self.keeper.lacks(node, kinds)):
            return self.chains[key]
        # A record is looked at before: it may be there with errors.
        if node.stage != "record" and self.store.has(node.stage, key) and not self.keeper.lacks(node, kinds):
            return self.chains.setdefault(key, 0.0)
        before = {each.key: self._need(each, index, pipeline, READS[node.stage]) for each in node.inputs}
        kind = (node.stage, node.plugin)
        spent = self.known.get(kind)
        task = Task(key, node.stage, node.title, self.cells[index], index, node.uses, spent.peak_mib if spent else 0.0)
        self.waiting[key] = Waiting(task, {each for each in before if each in self.waiting}, pipeline)
        self.keeper.reads(node)
        self.chains[key] = max(before.values(), default=0.0) + costs.seconds(self.known, kind)
        return self.chains[key]

    def _number(self, order: Mapping[int, int]) -> None:
        """Give tasks their place: that of the first cell that needs them, and within a cell as they were entered (needed ones first)."""
        place: dict[str, int] = {}

        def mark(key: str, position: int) -> None:
            if key in place:
                return
            place[key] = position
            for needed in self.waiting[key].inputs:
                mark(needed, position)

        for key, index in sorted(self.records.items(), key=lambda item: order[item[1]]):
            mark(key, order[index])
        entered = {key: number for number, key in enumerate(self.waiting)}
        for position, key in enumerate(sorted(self.waiting, key=lambda key: (place[key], entered[key]))):
            self.waiting[key].order = position

    # --- running

    def _loop(self) -> None:
        idle = [*self.executor.slots()]
        while self.waiting and not self._stopped():
            for worker in [*idle]:
                if not self.ready:
                    break
                self._start(worker, self._choose(worker))
                idle.remove(worker)
            for outcome in self.executor.wait():
                idle.append(outcome.worker)
                self._finish(outcome)
                if self._stopped():
                    return
            idle += [slot for slot in self.executor.slots() if slot not in self.workers and slot not in idle]  # a cluster may grow

    def _choose(self, worker: int) -> str:
        """The next task for a worker: on the base model that it has, on a release that it has, on one that no other has, in order."""
        mine = self.workers[worker]
        others = {release for other in self.workers.values() if other is not mine for release in other.warm}

        def reload(item: tuple[int, str]) -> tuple:
            waiting = self.waiting[item[1]]
            uses = waiting.task.uses
            cold = bool(uses) and not uses.startswith("base:") and uses not in mine.warm
            return (waiting.pipeline != mine.pipeline, cold, cold and uses in others, item)

        item = min(self.ready[:LOOKED_AT], key=reload)
        self.ready.remove(item)
        return item[1]

    def _start(self, worker: int, key: str) -> None:
        waiting = self.waiting[key]
        self.workers[worker].took(waiting)
        cell, index = waiting.task.cell, waiting.task.index
        if index not in self.begun:
            self.begun.add(index)
            reporter().cell(len(self.begun | {*self.results}) - 1, len(self.cells), f"{cell.method} · {cell.attack} · {cell.subject}")
        self.executor.start(worker, waiting.task)

    def _finish(self, outcome: Outcome) -> None:
        if isinstance(outcome.error, StoreError):  # every other stage would meet it too
            raise outcome.error
        if outcome.error:
            self._fail(outcome.key, outcome.error)
            return
        waiting = self.waiting.pop(outcome.key)
        for key in waiting.dependents:
            dependent = self.waiting.get(key)
            if dependent:
                dependent.inputs.discard(outcome.key)
                if not dependent.inputs:
                    bisect.insort(self.ready, (dependent.order, key))
        if outcome.key in self.records:
            index = self.records[outcome.key]
            self.results[index] = save(self.output, self.cells[index], self.store.fetched("record", outcome.key))
            if any(row["value"] is None for row in (self.results[index].record or {})["rows"]):
                return  # it is scored again, from its pictures
        self.keeper.finished(outcome.key)

    def _fail(self, key: str, error: PersbenchError) -> None:
        """A failed stage is an error of all cells that need it; others go on."""
        waiting = self.waiting.pop(key, None)
        if waiting is None:
            return
        if key in self.records:
            self._no_record(self.records[key], error)
        for dependent in waiting.dependents:
            self._fail(dependent, error)

    def _no_record(self, index: int, error: PersbenchError) -> None:
        if isinstance(error, SkippedCell):
            self.results[index] = save(self.output, self.cells[index], skipped=str(error))
        else:
            if self.debug:
                raise error
            self.results[index] = save(self.output, self.cells[index], error=str(error))

    def _stopped(self) -> bool:
        return self.fail_fast and any(result.error for result in self.results.values())
