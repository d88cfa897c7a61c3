"""Progress of long work: bars on a terminal, plain lines elsewhere, nothing when quiet. Plug-ins call `steps` and know no more."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
PLAIN_SECONDS = 20.0


class Reporter:
    """Silent reporter, and the interface of the others."""

    why = False  # say of each stage why it has to run

    def stage(self, title: str) -> None:
        """A stage begins."""

    def advance(self, description: str, done: int, total: int) -> None:
        """`done` of `total` steps of the present stage are behind us."""

    def cell(self, done: int, total: int, title: str) -> None:
        """`done` of `total` cells are finished; the next one is `title`."""

    def note(self, text: str) -> None:
        """A remark on the present stage."""

    def close(self) -> None:
        """No more reports."""


class PlainReporter(Reporter):
    """Lines for a log: one a cell and stage, and one every 20 seconds within a stage."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def stage(self, title: str) -> None:
        self.console.print(f"  {title}", highlight=False)
        self.last = time.monotonic()

    def note(self, text: str) -> None:
        self.console.print(f"    {text}", highlight=False, markup=False)

    def advance(self, description: str, done: int, total: int) -> None:
        if time.monotonic() - self.last > PLAIN_SECONDS:
            self.console.print(f"    {description} {done}/{total}", highlight=False)
            self.last = time.monotonic()

    def cell(self, done: int, total: int, title: str) -> None:
        self.console.print(f"[{done + 1}/{total}] {title}" if done < total else f"[{total}/{total}] done", highlight=False, markup=False)


class BarReporter(Reporter):
    """Two bars: all cells, and the stage at work."""

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
        self.work = self.bars.add_task("", total=None, visible=False)
        self.title = ""

    def stage(self, title: str) -> None:
        self.title = title
        self.bars.reset(self.work, description=title, total=None, visible=True)

    def advance(self, description: str, done: int, total: int) -> None:
        self.bars.update(self.work, completed=done, total=total, description=f"{self.title} · {description}"[:60])

    def cell(self, done: int, total: int, title: str) -> None:
        self.bars.update(self.cells, completed=done, total=total, description=title)

    def note(self, text: str) -> None:
        self.bars.console.print(f"{self.title}: {text}", highlight=False, markup=False)

    def close(self) -> None:
        self.bars.stop()


_active: ContextVar[Reporter | None] = ContextVar("persbench_reporter", default=None)


def reporter() -> Reporter:
    """The reporter in charge; a silent one by default."""
    return _active.get() or Reporter()


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
