"""What runs a stage: in this process, in a worker process, or in a task of a cluster. torch is imported when work begins, not before."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from persbench.errors import PersbenchError
from persbench.progress import Reporter, set_reporter

if TYPE_CHECKING:
    from persbench.pipeline.spec import Cell
    from persbench.pipeline.store import Place, Store

SECONDS_BETWEEN = 0.2  # reports of steps


class Runner:
    """Runs stages on a store; keeps the models of one base model in memory."""

    def __init__(self, store: Store) -> None:
        from persbench.pipeline.stages import Pipelines

        self.store, self.pipelines = store, Pipelines(store)

    def run(self, cell: Cell, key: str) -> None:
        """Run a stage of a cell. Raises PersbenchError."""
        from persbench.pipeline.stages import PICTURE_FILES, WEIGHT_FILES

        self.pipelines.at_work(cell).node(cell, key).run(self.store, PICTURE_FILES | WEIGHT_FILES)  # all of it, whatever was dropped


class Sender(Reporter):
    """Reports to another process: events are the names of the reporter's methods and their arguments."""

    def __init__(self, send: Callable[[tuple[Any, ...]], None], why: bool) -> None:
        self.send, self.why, self.last = send, why, 0.0

    def stage(self, title: str, worker: int = 0) -> None:
        self.send(("stage", title))

    def advance(self, description: str, done: int, total: int, worker: int = 0) -> None:
        if time.monotonic() - self.last > SECONDS_BETWEEN or done == total:
            self.last = time.monotonic()
            self.send(("advance", description, done, total))

    def note(self, text: str, worker: int = 0) -> None:
        self.send(("note", text))


def prepare(threads: int) -> None:
    """Set torch up for a worker: its number of threads, and denormal numbers as in every other process."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def serve(pipe: Connection, place: Place, threads: int, gpu: str, why: bool, debug: bool) -> None:
    """A worker process: takes (cell, key) until it is killed or its parent is gone; answers ("done", error or "", is it a StoreError)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent kills us
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = parent_process()
    assert parent

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    prepare(threads)
    from persbench.pipeline.store import StoreError

    runner = Runner(place.open())
    set_reporter(Sender(pipe.send, why))
    warnings.showwarning = lambda message, category, *_: pipe.send(("warn", str(message))) if category is UserWarning else None
    with suppress(EOFError):
        while True:
            cell, key = pipe.recv()
            try:
                runner.run(cell, key)
                pipe.send(("done", "", False))
            except PersbenchError as error:
                if debug:
                    traceback.print_exc()
                pipe.send(("done", str(error), isinstance(error, StoreError)))
