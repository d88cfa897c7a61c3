"""`persbench submit` and `persbench verify`: results of somebody's runs in one archive, and whether to believe them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from persbench.errors import PersbenchError

app = typer.Typer(help="Make an archive of results for others to verify.", no_args_is_help=True)


@app.callback()
def submit() -> None:
    """Make an archive of results for others to verify."""


@app.command()
def pack(
    records: Annotated[list[Path], typer.Argument(help="Records (OUTPUT/records/*.json), or folders of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The archive to write.")] = Path("submission.zip"),
    weights: Annotated[bool, typer.Option("--weights", help="Also the weights of released models (runs with --keep all).")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Pack records with their released photos, generated pictures and digests."""
    from rich.console import Console

    from persbench.pipeline.submission import pack as packed

    count = packed(records, output, weights)
    text = f"packed {count} records into {output}; check it: persbench verify {output}"
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def verify(
    file: Annotated[Path, typer.Argument(help="An archive that persbench submit pack has made.")],
    rerun: Annotated[int, typer.Option(help="How many cells, chosen at random, to run again.", min=0)] = 0,
    base: Annotated[str, typer.Option(help="Your folder of the base model, where it is not the track's own.")] = "",
    output: Annotated[Path | None, typer.Option(help="Run again with the store of this output folder.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    tolerance: Annotated[float, typer.Option(help="Of recomputed values, absolute and relative.", min=0)] = 1e-3,
    rerun_tolerance: Annotated[float, typer.Option(help="Of means of cells that were run again, absolute and relative.", min=0)] = 0.05,
    extract: Annotated[
        Path | None, typer.Option(help="Write records, pictures and verdicts of an archive that holds into this folder.")
    ] = None,
    verdict: Annotated[Path | None, typer.Option(help="Where the verdict goes; FILE.verdict.json if left out.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Check a submission: digests, budgets, every metric from its pictures, and a sample of cells run again. Exit code 1 if it fails."""
    from rich.console import Console

    from persbench.pipeline.store import write_atomically
    from persbench.pipeline.submission import verdict_dict
    from persbench.pipeline.submission import verify as verified

    if not file.is_file():
        raise PersbenchError(f"no file {file}")
    console, log = Console(), Console(stderr=True)

    def note(text: str) -> None:
        if not quiet:
            log.print(text, highlight=False, markup=False, soft_wrap=True)

    found = verified(
        file,
        rerun=rerun,
        base=base,
        output=output,
        device=device,
        tolerance=tolerance,
        rerun_tolerance=rerun_tolerance,
        extract=extract,
        note=note,
    )
    written = verdict_dict(found, file)
    path = verdict or file.with_name(f"{file.name}.verdict.json")
    write_atomically(path, json.dumps(written, indent=1, sort_keys=True))
    for reason in found.reasons:
        console.print(reason, highlight=False, markup=False, soft_wrap=True)
    for name, record in written["records"].items():
        for reason in record["reasons"]:
            console.print(f"{name} ({record['cell']}): {reason}", highlight=False, markup=False, soft_wrap=True)
    if found.unknown_metrics:
        console.print(f"not recomputed (not installed here): {', '.join(found.unknown_metrics)}", highlight=False, markup=False)
    summary = f"{found.status}: {len(found.records)} records, {len(found.rerun)} run again; {path}"
    console.print(summary, highlight=False, markup=False, soft_wrap=True)
    if found.status == "failed":
        raise typer.Exit(1)
