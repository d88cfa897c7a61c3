"""`persbench store`: what the store of an output folder takes, whether it is sound, and how to make it smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .run import OUTPUT

if TYPE_CHECKING:
    from persbench.pipeline.store import Store

app = typer.Typer(help="Size, soundness and garbage of a store.", no_args_is_help=True)
Output = Annotated[Path, typer.Option(help="The output folder of the runs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def size(output: Output = OUTPUT, debug: Debug = False) -> None:
    """Show the space that each stage takes."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from persbench.pipeline.upkeep import sizes

    store = opened(output)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for heading in ("artefacts", "files", "size", "dropped files"):
        table.add_column(heading, justify="right")
    found = sizes(store)
    for stage, each in found.items():
        table.add_row(stage, str(each.artefacts), str(each.files), decimal(each.size), str(each.dropped))
    everything = found.values()
    totals = (sum(e.artefacts for e in everything), sum(e.files for e in everything))
    table.add_section()
    table.add_row("all", *map(str, totals), decimal(sum(e.size for e in everything)), str(sum(e.dropped for e in everything)))
    Console().print(table)


@app.command()
def verify(output: Output = OUTPUT, debug: Debug = False) -> None:
    """Compare all files with their checksums; exit code 1 where one is damaged."""
    from rich.console import Console

    from persbench.pipeline.upkeep import verify as verified

    console, store = Console(), opened(output)
    total, damaged = 0, 0
    for stage, key, bad in verified(store):
        total += 1
        if bad:
            damaged += 1
            console.print(f"damaged: {store.folder(stage, key)} ({', '.join(bad)})", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{total} artefacts, {damaged} damaged" + ("; the next run that needs them makes them again" if damaged else ""))
    if damaged:
        raise typer.Exit(1)


@app.command()
def gc(
    output: Output = OUTPUT,
    unused: Annotated[bool, typer.Option("--unused", help="What no record in the records folder refers to.")] = False,
    older_than: Annotated[float | None, typer.Option(help="What was made before so many days; with --unused what is both.", min=0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    debug: Debug = False,
) -> None:
    """Delete what dead runs left behind and, if asked, artefacts; they are made again when a run needs them."""
    from rich.console import Console
    from rich.filesize import decimal

    from persbench.pipeline.upkeep import delete, garbage, space

    console, store = Console(), opened(output)
    freed = 0
    leftovers, doomed = store.leftovers(), garbage(store, output / "records", unused, older_than)
    for path in (*leftovers, *(store.folder(*each) for each in doomed)):
        freed += space(path)
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    if not dry_run:
        for path in leftovers:
            delete(path)
        for stage, key in doomed:
            store.remove(stage, key)
    verb = "would free" if dry_run else "freed"
    console.print(f"{len(leftovers)} leftovers, {len(doomed)} artefacts: {verb} {decimal(freed)}", highlight=False)


def opened(output: Path) -> Store:
    """The store of an output folder. Raises PersbenchError where there is none."""
    from persbench.errors import PersbenchError
    from persbench.pipeline.store import existing_store

    found = existing_store(output)
    if found is None:
        raise PersbenchError(f"no store in {output}; give the folder of a run with --output")
    return found
