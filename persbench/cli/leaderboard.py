"""`persbench leaderboard`: rank what has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .run import OUTPUT


def leaderboard(
    output: Annotated[Path, typer.Option(help="The output folder of the runs.")] = OUTPUT,
    threat_model: Annotated[str, typer.Option(help="Rank the methods of one threat model alone: image, model or both.")] = "",
    attack_set: Annotated[str, typer.Option(help="Worst case over this set: standard, strong, shared or all.")] = "",
    details: Annotated[bool, typer.Option("--details", help="Also every attack, and where each flag was seen.")] = False,
    export: Annotated[
        list[Path], typer.Option(help="Write a file, by its suffix: .csv, .parquet, .md, .tex or .json; repeat for several.")
    ] = [],  # noqa: B006
    site: Annotated[Path | None, typer.Option(help="Write a static site into this folder; it opens without a server or network.")] = None,
    reported: Annotated[
        list[str], typer.Option(help="Add what papers report, in tables of their own: 'papers', or a JSON file; repeat for several.")
    ] = [],  # noqa: B006
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Rank the methods that have been run, by protection in the worst case over attacks."""
    from rich.console import Console

    from persbench.leaderboard.aggregate import disclaimer, read_boards
    from persbench.leaderboard.exports import check_suffix, export_boards
    from persbench.leaderboard.reported import read_reported
    from persbench.leaderboard.terminal import print_leaderboard

    for path in export:
        check_suffix(path)
    papers = [paper for name in reported for paper in read_reported(name)]
    everything = read_boards(output)
    boards = [board.view(attack_set if attack_set in board.attack_sets else "", threat_model) for board in everything]
    if attack_set and not any(attack_set in board.attack_sets for board in boards):
        boards[0].view(attack_set)  # says what there is
    disclaimers = {board.track: disclaimer(board.track) for board in boards}
    print_leaderboard(Console(), boards, disclaimers, details, papers)
    for path in export:
        for written in export_boards(path, boards, papers):
            Console().print(f"wrote {written}", highlight=False, soft_wrap=True)
    if site:
        from persbench.leaderboard.site import write_site
        from persbench.leaderboard.verdicts import read_verdicts

        page = write_site(site, everything, output, disclaimers, papers, read_verdicts(output))
        Console().print(f"wrote {page}", highlight=False, soft_wrap=True)
