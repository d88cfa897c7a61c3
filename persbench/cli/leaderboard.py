"""`persbench leaderboard`: rank what has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .run import OUTPUT


def leaderboard(
    output: Annotated[Path, typer.Option(help="The output folder of the runs.")] = OUTPUT,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page here.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Rank the methods that have been run, by protection (worst case over attacks where there are several)."""
    from rich.console import Console

    from persbench.leaderboard.aggregate import rank, read_records, score
    from persbench.leaderboard.html import write_page
    from persbench.leaderboard.terminal import print_leaderboard

    records = read_records(output)
    scores = [score(record, path.name) for path, record in records]
    lines = rank(scores)
    disclaimers = sorted({_disclaimer(each.track) for each in scores})
    print_leaderboard(Console(), lines, disclaimers)
    if html:
        write_page(html, lines, scores, disclaimers)
        Console().print(f"page: {html}", highlight=False)


def _disclaimer(track: str) -> str:
    from persbench import registry

    return registry.load("tracks", track).disclaimer  # type: ignore[attr-defined]
