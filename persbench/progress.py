"""Progress of long work: bars on a terminal, plain lines elsewhere, nothing when quiet. Plug-ins call `steps` and know no more."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

T = TypeVar("T")
PLAIN_SECONDS = 20.0


class Reporter:
    """Silent reporter, and the interface of the others."""

    why = False  # say of each stage why it has to run

    def stage(self, title: str, worker: int = 0) -> None:
        """A stage begins; `worker`: which worker process has it, from 1, or 0 for this process."""

    def advance(self, description: str, done: int, total: int, worker: int = 0) -> None:
        """`done` of `total` steps of the present stage are behind us."""

    def cell(self, done: int, total: int, title: str) -> None:
        """`done` of `total` cells are finished; the next one is `title`."""

    def note(self, text: str, worker: int = 0) -> None:
        """A remark on the present stage."""

    def close(self) -> None:
        """No more reports."""


class PlainReporter(Reporter):
    """Lines for a log: one a cell and stage, and one every 20 seconds within a stage."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def _say(self, text: str, worker: int) -> None:
        self.console.print(f"  {f'worker {worker}: ' if worker else ''}{text}", highlight=False, markup=False)

    def stage(self, title: str, worker: int = 0) -> None:
        self._say(title, worker)
        self.last = time.monotonic()

    def note(self, text: str, worker: int = 0) -> None:
        self._say(f"  {text}", worker)

    def advance(self, description: str, done: int, total: int, worker: int = 0) -> None:
        if time.monotonic() - self.last > PLAIN_SECONDS:
            self._say(f"  {description} {done}/{total}", worker)
            self.last = time.monotonic()

    def cell(self, done: int, total: int, title: str) -> None:
        self.console.print(f"[{done + 1}/{total}] {title}" if done < total else f"[{total}/{total}] done", highlight=False, markup=False)


class BarReporter(Reporter):
    """One bar for all cells, and one for the stage that each worker is at."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.bars.start()
        self.cells = self.bars.add_task("cells", total=None)
        self.work: dict[int, TaskID] = {}
        self.titles: dict[int, str] = {}

    def stage(self, title: str, worker: int = 0) -> None:
        self.titles[worker] = title
        if worker not in self.work:
            self.work[worker] = self.bars.add_task(title, total=None)
        self.bars.reset(self.work[worker], description=title, total=None)

    def advance(self, description: str, done: int, total: int, worker: int = 0) -> None:
        if worker in self.work:
            text = f"{self.titles[worker]} · {description}"[:60]
            self.bars.update(self.work[worker], completed=done, total=total, description=text)

    def cell(self, done: int, total: int, title: str) -> None:
        self.bars.update(self.cells, completed=done, total=total, description=title)

    def note(self, text: str, worker: int = 0) -> None:
        self.bars.console.print(f"{self.titles.get(worker, '')}: {text}", highlight=False, markup=False)

    def close(self) -> None:
        self.bars.stop()


_active: ContextVar[Reporter | None] = ContextVar("persbench_reporter", default=None)


def reporter() -> Reporter:
    """The reporter in charge; a silent one by default."""
    return _active.get() or Reporter()


def set_reporter(chosen: Reporter) -> None:
    """Put a reporter in charge for good: that of a worker process."""
    _active.set(chosen)


@contextmanager
def reporting(console: Console, quiet: bool, why: bool = False) -> Iterator[Reporter]:
    """Put a fitting reporter in charge: silent, plain, or bars on a terminal."""
    chosen = Reporter() if quiet else BarReporter(console) if console.is_terminal else PlainReporter(console)
    chosen.why = why
    token = _active.set(chosen)
    try:
        yield chosen
    finally:
        chosen.close()
        _active.reset(token)


def steps(items: Iterable[T], description: str) -> Iterator[T]:
    """Iterate over sized `items` and report how far it is."""
    total = len(items) if isinstance(items, Sized) else 0
    for number, item in enumerate(items):
        yield item
        reporter().advance(description, number + 1, total)
