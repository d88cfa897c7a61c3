"""What an executor is: it runs stages of cells somewhere, and says what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from persbench.errors import PersbenchError
from persbench.pipeline.spec import Cell
from persbench.progress import reporter


@dataclass(frozen=True)
class Task:
    """A stage to be run: whoever runs it plans the cell himself and finds the stage by its key."""

    key: str
    stage: str
    title: str
    cell: Cell
    index: int  # of the cell in the run
    uses: str = ""  # the model that it works on
    peak_mib: float = 0.0  # memory that such stages took; 0: unknown


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    worker: int
    key: str
    error: PersbenchError | None = None


class Executor(ABC):
    """Runs tasks on numbered workers, one at a time on each."""

    in_process = False

    @abstractmethod
    def slots(self) -> Iterable[int]:
        """The numbers of the workers; more may come while a run goes on."""

    @abstractmethod
    def start(self, worker: int, task: Task) -> None:
        """Give an idle worker a task whose inputs are all in the store."""

    @abstractmethod
    def wait(self) -> list[Outcome]:
        """What has ended; returns within about a second, empty-handed perhaps."""

    @abstractmethod
    def close(self) -> None:
        """Stop all work at once; what is half done leaves nothing in the store."""


def report(worker: int, event: tuple[Any, ...]) -> None:
    """Pass on what a worker says about its progress."""
    kind, *words = event
    getattr(reporter(), kind)(*words, worker=worker)
