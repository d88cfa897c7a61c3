"""`persbench run`: protect, attack, generate, score, and say how well the protection held."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from persbench.pipeline.results import Result, fingerprint, finished, note_finished
from persbench.pipeline.specfile import OUTPUT, Specification, matrix, specification

from .options import Spec, with_options

if TYPE_CHECKING:
    from rich.console import Console

    from persbench.pipeline.executors.base import Executor
    from persbench.pipeline.store import Store

__all__ = ["OUTPUT", "Result", "execute", "run"]


def run(spec: Spec = None, **given: Any) -> None:
    """Run protections against attacks and print how well they held."""
    from rich.console import Console

    asked = specification(spec, given)
    console = Console(stderr=True)
    warnings.showwarning = lambda message, category, *_: (
        None if category is not UserWarning else console.print(f"[yellow]warning:[/] {message}", highlight=False, soft_wrap=True)
    )
    if asked.changes():
        warnings.warn("this run changes the track's protocol: compare its results with each other only", stacklevel=1)
    stamp = fingerprint(asked.bases)
    request = asked.request() | {"keep": asked.keep, "store": asked.store}  # another store has to get it, one that keeps less to drop it
    known = finished(asked.output, request, stamp)
    results = execute(asked, console) if known is None else known
    if known is None and not any(result.error or _has_error_rows(result) for result in results):
        note_finished(asked.output, request, stamp, results)
    from persbench.leaderboard.terminal import print_run

    print_run(Console(), results, asked.output)
    failed = [result for result in results if result.error]
    if failed and (asked.fail_fast or len(failed) == len(results)):
        raise typer.Exit(1)


run = with_options(run)


def _has_error_rows(result: Result) -> bool:
    return result.record is not None and any(row["value"] is None for row in result.record["rows"])


def execute(asked: Specification, console: Console) -> list[Result]:
    """Run all cells; a failing cell becomes an error and the others go on."""
    cells = [cell for spec in matrix(asked) for cell in spec.cells()]
    from persbench.pipeline.scheduler import Scheduler
    from persbench.pipeline.store import store_of
    from persbench.progress import reporting

    store = store_of(asked.output, asked.store)
    with reporting(console, asked.quiet, asked.why):
        return Scheduler(cells, store, asked.output, executor(asked, store), asked.fail_fast, asked.debug, asked.keep).run()


def executor(asked: Specification, store: Store) -> Executor:
    """The executor that was asked for. A timeout needs a process that can be killed: one worker, if none was asked for."""
    if asked.executor == "ray":
        from persbench.pipeline.executors.cluster import Cluster

        return Cluster(store.place, asked.address, asked.threads, asked.timeout, asked.why)
    count, threads = workers(asked)
    if count or asked.timeout:
        from persbench.pipeline.executors.processes import Processes

        return Processes(store.place, count or 1, threads, asked.timeout, asked.why, asked.debug)
    import torch

    from persbench.pipeline.executors.in_process import InProcess
    from persbench.pipeline.executors.worker import prepare

    prepare(threads or torch.get_num_threads())
    return InProcess(store, asked.debug)


def workers(asked: Specification) -> tuple[int, int | None]:
    """Worker processes and their threads, as asked for or as they suit. Where it is left to us, threads are always the same, on whatever
    number of cores: their number decides about the last bits."""
    count = os.environ.get("PERSBENCH_WORKERS", "") if asked.workers is None else str(asked.workers)
    if count.isdecimal() or asked.timeout or asked.device != "cpu":
        return int(count) if count.isdecimal() else 0, asked.threads
    from persbench import registry
    from persbench.pipeline.executors.processes import suited

    tracks = [registry.load("tracks", name)() for name in asked.tracks]
    found = suited(Path(base) if base else track.base for base in asked.bases for track in tracks)
    return found, asked.threads or (1 if found else None)
