"""`persbench score`: metrics again, from stored pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from persbench.errors import PersbenchError

from .run import OUTPUT


def score(
    output: Annotated[Path, typer.Option(help="The output folder of the runs.")] = OUTPUT,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Compute metrics that are new or have changed from the pictures of finished cells; nothing is trained or generated."""
    from rich.console import Console

    from persbench.pipeline.rescore import cell_of, rescored
    from persbench.pipeline.stages import Pipelines
    from persbench.pipeline.store import StoreError, store_of, write_atomically
    from persbench.progress import reporting

    paths = sorted((output / "records").glob("*.json"))
    if not paths:
        raise PersbenchError(f"no records in {output / 'records'}; run something first: persbench run --method persguard-target")
    console, store = Console(stderr=True), store_of(output)
    pipelines = Pipelines(store)
    changed, failed = 0, 0
    with reporting(console, quiet) as report:
        for number, path in enumerate(paths):
            report.cell(number, len(paths), path.stem)
            text = path.read_text("utf-8")
            try:
                record = json.loads(text)
                if record.get("status", "ok") != "ok":
                    continue
                cell = cell_of(record)
                new = rescored(record, pipelines.at_work(cell)).run(store).path("record.json").read_text("utf-8")
            except StoreError:
                raise
            except (PersbenchError, ValueError, KeyError, TypeError) as error:
                if debug:
                    raise
                failed += 1
                reason = error if isinstance(error, PersbenchError) else "it is not a record of this version"
                console.print(f"{path.name}: {reason}", style="red", highlight=False, markup=False, soft_wrap=True)
                continue
            if new != text:
                changed += 1
                write_atomically(path, new)
        report.cell(len(paths), len(paths), "done")
    Console().print(f"{len(paths)} records: {changed} changed, {failed} could not be scored", highlight=False)
    if failed:
        raise typer.Exit(1)
