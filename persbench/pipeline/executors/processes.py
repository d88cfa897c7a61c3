"""Worker processes on one machine."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from persbench.pipeline.stages import StageError
from persbench.pipeline.store import Place, StoreError

from .base import Executor, Outcome, Task, report
from .worker import serve

ATTEMPTS = 2  # of a stage whose worker process dies
SECONDS = 0.5
PATIENCE = 5.0  # seconds that an idle worker may take to end
SMALL = 256 << 20  # bytes of weights


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def suited(bases: Iterable[Path]) -> int:
    """How many processes of one thread suit a run on the CPU, with base models in these folders; 0: they suit it less than threads.

    A step of a small model is far from twice as fast in two threads as in one. There is one process for each core and 3 GiB of memory.
    """
    if any(sum(path.stat().st_size for path in folder.rglob("*.safetensors")) > SMALL for folder in bases):
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    count = min(cores(), memory // (3 << 30))
    return count if count > 1 else 0


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be, one GPU each."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


class _Worker:
    """A process, and what it is at."""

    def __init__(self, number: int, process: SpawnProcess, pipe: Connection) -> None:
        self.number, self.process, self.pipe = number, process, pipe
        self.task: Task | None = None
        self.title, self.since = "", 0.0  # the stage at work and when it began; 0: none yet

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Processes(Executor):
    """`count` processes that split the cores and the GPUs; a stage over `timeout` seconds is killed."""

    def __init__(
        self, place: Place, count: int, threads: int | None = None, timeout: float | None = None, why: bool = False, debug: bool = False
    ) -> None:
        self.place, self.count, self.timeout, self.why, self.debug = place, count, timeout, why, debug
        self.threads = threads or max(1, cores() // count)
        self.gpus = gpus()
        self.workers: dict[int, _Worker] = {}
        self.deaths: Counter[str] = Counter()

    def slots(self) -> Iterable[int]:
        return range(1, self.count + 1)

    def start(self, worker: int, task: Task) -> None:
        at_work = self.workers.get(worker) or self._spawn(worker)
        at_work.task, at_work.since = task, 0.0
        with suppress(OSError):  # it died while it had nothing to do: `wait` finds out and tries again
            at_work.pipe.send((task.cell, task.key))

    def _spawn(self, number: int) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        gpu = self.gpus[(number - 1) % len(self.gpus)] if self.gpus else ""
        process = context.Process(target=serve, args=(theirs, self.place, self.threads, gpu, self.why, self.debug))
        process.start()
        theirs.close()
        self.workers[number] = _Worker(number, process, ours)
        return self.workers[number]

    def wait(self) -> list[Outcome]:
        wait([worker.pipe for worker in self.workers.values()], timeout=SECONDS)
        return [outcome for worker in [*self.workers.values()] if (outcome := self._look(worker))]

    def _look(self, worker: _Worker) -> Outcome | None:
        task = worker.task
        try:
            while worker.pipe.poll():
                event = worker.pipe.recv()
                if event[0] == "done":
                    assert task
                    worker.task = None
                    return Outcome(worker.number, task.key, (StoreError if event[2] else StageError)(event[1]) if event[1] else None)
                self._heard(worker, event)
        except (EOFError, OSError):
            return self._died(worker)
        if task and self.timeout and worker.since and time.monotonic() - worker.since > self.timeout:
            self._drop(worker)
            error = StageError(f"{worker.title}: it took more than {self.timeout:g} s (--timeout)")
            return Outcome(worker.number, task.key, error)
        return None

    def _heard(self, worker: _Worker, event: tuple[Any, ...]) -> None:
        if event[0] == "warn":
            warnings.warn(event[1], stacklevel=2)
            return
        if event[0] == "stage":
            worker.title, worker.since = event[1], time.monotonic()
        report(worker.number, event)

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        del self.workers[worker.number]

    def _died(self, worker: _Worker) -> Outcome | None:
        """A dead worker is replaced and its stage tried once more: it may have been the victim of another program's hunger."""
        self._drop(worker)
        task = worker.task
        if task is None:
            return None
        self.deaths[task.key] += 1
        if self.deaths[task.key] < ATTEMPTS:
            self.start(worker.number, task)
            return None
        code = worker.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return Outcome(worker.number, task.key, StageError(f"{task.title}: the worker process died {how}; is there enough memory?"))

    def close(self) -> None:
        idle = [worker for worker in self.workers.values() if worker.task is None]
        for worker in idle:
            worker.pipe.close()  # it has nothing more to do, and ends; killed, it would leave semaphores behind
        for worker in idle:
            worker.process.join(PATIENCE)
        for worker in [*self.workers.values()]:
            self._drop(worker)
