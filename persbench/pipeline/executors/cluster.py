"""Stages as tasks of a Ray cluster. The store lies on a path that all nodes share, and persbench is installed on each."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

from persbench.errors import PersbenchError
from persbench.pipeline.spec import Cell
from persbench.pipeline.stages import StageError
from persbench.pipeline.store import Place, StoreError

from .base import Executor, Outcome, Task, report
from .worker import Runner, Sender, prepare

RETRIES = 5  # of a task whose node or process dies
HEADROOM = 1.2  # memory asked for over what such stages took
SECONDS = 0.5


class Events:
    """What tasks say about their progress, until the driver takes it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, tuple[Any, ...]]] = []

    def add(self, key: str, event: tuple[Any, ...]) -> None:
        """Keep an event of a task."""
        self.waiting.append((key, event))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """All events since the last time."""
        taken, self.waiting = self.waiting, []
        return taken


@cache
def _runner(place: Place, threads: int) -> Runner:
    """One for each Ray worker process, so that it keeps its models between tasks."""
    prepare(threads)
    return Runner(place.open())


def perform(place: Place, threads: int, why: bool, events: Any, cell: Cell, key: str) -> tuple[str, bool]:
    """A task: run a stage; returns what went wrong, or "", and whether it is a StoreError."""
    from persbench.progress import set_reporter

    set_reporter(Sender(lambda event: events.add.remote(key, event), why))
    try:
        _runner(place, threads).run(cell, key)
    except PersbenchError as error:
        return str(error), isinstance(error, StoreError)
    return "", False


class Cluster(Executor):
    """A Ray cluster at an address ("": a new one on this machine). Tasks ask for `threads` cores, a GPU on CUDA, and recorded memory."""

    def __init__(
        self, place: Place, address: str = "", threads: int | None = None, timeout: float | None = None, why: bool = False
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise PersbenchError("the Ray executor needs Ray; pip install 'persbench[ray]'") from None
        self.ray, self.place, self.threads, self.timeout, self.why = ray, place, threads or 1, timeout, why
        try:
            ray.init(
                log_to_driver=False, logging_level=logging.ERROR, **({"address": address} if address else {"include_dashboard": False})
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = address or "this machine"
            raise PersbenchError(f"no Ray cluster at {where}: {str(error).splitlines()[0]}") from None
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.events: Any = ray.remote(Events).options(num_cpus=0, scheduling_strategy=here).remote()
        self.perform = ray.remote(perform)
        self.at_work: dict[Any, tuple[int, Task]] = {}
        self.began: dict[str, tuple[str, float]] = {}  # key of a task to the stage that it is at, and since when
        self.late: set[Any] = set()

    def slots(self) -> Iterable[int]:
        """Twice as many as run at once, so that a cluster that grows with its queue sees one."""
        return range(1, 2 * max(1, int(self.ray.cluster_resources().get("CPU", 0) // self.threads)) + 1)

    def start(self, worker: int, task: Task) -> None:
        largest = max((node["Resources"].get("memory", 0.0) for node in self.ray.nodes() if node["Alive"]), default=0.0)
        reference = self.perform.options(
            num_cpus=self.threads,
            num_gpus=1 if task.cell.device.startswith("cuda") else 0,
            memory=int(min(task.peak_mib * HEADROOM * 2**20, largest)) or None,
            max_retries=RETRIES,
            name=task.title,
        ).remote(self.place, self.threads, self.why, self.events, task.cell, task.key)
        self.at_work[reference] = worker, task

    def wait(self) -> list[Outcome]:
        if not self.at_work:
            return []
        done, _ = self.ray.wait([*self.at_work], timeout=SECONDS)
        self._listen()
        return [self._ended(reference) for reference in done]

    def _listen(self) -> None:
        numbers = {task.key: worker for worker, task in self.at_work.values()}
        for key, event in self.ray.get(self.events.take.remote()):
            if key in numbers:
                report(numbers[key], event)
                if event[0] == "stage":
                    self.began[key] = event[1], time.monotonic()
        for reference, (_, task) in self.at_work.items():
            if self.timeout and task.key in self.began and time.monotonic() - self.began[task.key][1] > self.timeout:
                self.late.add(reference)
                self.ray.cancel(reference, force=True)

    def _ended(self, reference: Any) -> Outcome:
        worker, task = self.at_work.pop(reference)
        title, _ = self.began.pop(task.key, (task.title, 0.0))
        fatal = False
        try:
            message, fatal = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            message = f"{task.title}: {str(error).strip().splitlines()[0]}"
        if reference in self.late:
            message = f"{title}: it took more than {self.timeout:g} s (--timeout)"
        return Outcome(worker, task.key, (StoreError if fatal else StageError)(message) if message else None)

    def close(self) -> None:
        for reference in self.at_work:
            self.ray.cancel(reference, force=True)
        self.at_work = {}
        self.ray.shutdown()
