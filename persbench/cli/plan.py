"""`persbench plan`: what a run would do, and what it would cost; and the schema of its specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persbench.pipeline.specfile import matrix, schema, specification

from .options import with_options
from .run import workers

if TYPE_CHECKING:
    from rich.console import Console

    from persbench.pipeline.planning import Plan


def plan(
    spec: Annotated[Path | None, typer.Argument(help="Specification file; or the options of persbench run.")] = None, **given: Any
) -> None:
    """Say how many cells and stages a run has, what the store has of them, and what the rest will cost."""
    from rich.console import Console

    asked = specification(spec, given)
    cells = [cell for part in matrix(asked) for cell in part.cells()]
    from persbench.pipeline.planning import make_plan
    from persbench.pipeline.store import store_of

    show(Console(), make_plan(cells, store_of(asked.output, asked.store)), max(1, workers(asked)[0]))


plan = with_options(plan)


def print_schema() -> None:
    """Print the JSON Schema of specification files."""
    print(json.dumps(schema(), indent=2))


def show(console: Console, made: Plan, count: int) -> None:
    """Print a plan."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "plug-in", "wanted", "in store", "to do", "seconds each", "seconds", "peak MiB"):
        table.add_column(heading, justify="left" if heading in ("stage", "plug-in") else "right")
    for line in made.lines:
        cost = line.cost
        each, total, peak = (f"{cost.seconds:.1f}", f"{line.seconds:,.0f}", f"{cost.peak_mib:,.0f}") if cost else ("?", "?", "?")
        table.add_row(line.stage, line.plugin, f"{line.wanted:,}", f"{line.stored:,}", f"{line.wanted - line.stored:,}", each, total, peak)
    console.print(table)
    wanted = sum(line.wanted for line in made.lines)
    shared = f"{made.alone / wanted:.1f} times fewer than" if wanted else "as many as"
    console.print(f"cells:  {made.cells:,}, of which {made.done:,} are in the store and {made.skipped:,} are impossible", highlight=False)
    console.print(f"stages: {wanted:,}, {shared} the {made.alone:,} of all cells alone", highlight=False)
    unknown = sorted({f"{line.stage} {line.plugin}".strip() for line in made.lines if line.cost is None and line.wanted > line.stored})
    if unknown:
        console.print(f"cost:   unknown for {', '.join(unknown)}: not run yet in this store", highlight=False, soft_wrap=True)
    hours, memory = made.seconds / 3600, made.peak_mib / 1024
    console.print(
        f"time:   {'at least ' if unknown else ''}{hours:.2f} h of one worker, {hours / count:.2f} h of {count};"
        f" memory: {memory:.1f} GiB a worker",
        highlight=False,
    )
    for reason in made.reasons:
        console.print(f"[yellow]skipped:[/] {reason}", highlight=False, soft_wrap=True)
