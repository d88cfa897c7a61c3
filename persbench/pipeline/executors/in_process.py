"""Work in the command's own process."""

from __future__ import annotations

from collections.abc import Iterable

from persbench.errors import PersbenchError
from persbench.pipeline.store import Store

from .base import Executor, Outcome, Task
from .worker import Runner


class InProcess(Executor):
    """One stage after the other, here. With `debug` what a stage raises is not caught."""

    in_process = True

    def __init__(self, store: Store, debug: bool = False) -> None:
        self.runner, self.debug = Runner(store), debug
        self.ended: list[Outcome] = []

    def slots(self) -> Iterable[int]:
        return (0,)

    def start(self, worker: int, task: Task) -> None:
        try:
            self.runner.run(task.cell, task.key)
            self.ended.append(Outcome(worker, task.key))
        except PersbenchError as error:
            if self.debug:
                raise
            self.ended.append(Outcome(worker, task.key, error))

    def wait(self) -> list[Outcome]:
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        self.ended = []
