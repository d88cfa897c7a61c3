"""`persbench compare`: two methods on the same subjects, attacks and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .run import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from persbench.leaderboard.aggregate import Score
    from persbench.leaderboard.compare import Comparison


def compare(
    first: Annotated[str, typer.Argument(help="A method as the leaderboard names it: aspl, or 'aspl (steps=9)'.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    output: Annotated[Path, typer.Option(help="The output folder of the runs.")] = OUTPUT,
    largest: Annotated[int, typer.Option(help="How many of the largest differences to show.", min=0)] = 3,
    sheet: Annotated[Path | None, typer.Option(help="Write their pictures here, as one PNG.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Compare two methods: paired differences of protection under each attack and in the worst case, and per subject."""
    from rich.console import Console

    from persbench.leaderboard.aggregate import read_boards
    from persbench.leaderboard.compare import compare as compared
    from persbench.leaderboard.compare import find_rows

    found = compared(*find_rows(read_boards(output), first, second))
    console = Console()
    print_comparison(console, found)
    pairs = found.cells[:largest]
    if pairs:
        console.print("[bold]largest differences[/], and where the adversary's pictures lie:", highlight=False)
    for one, other in pairs:
        console.print(
            f"{one.subject} under {one.attack}, seed {one.seed}: {one.protection:.2f} against {other.protection:.2f}", highlight=False
        )
        for label, folder in picture_folders(output, one, other):
            gone = "" if folder.is_dir() else "  (no longer in the store)"
            console.print(f"  {label:<8} {folder}{gone}", highlight=False, soft_wrap=True)
    if sheet and pairs:
        write_sheet(sheet, output, pairs)
        console.print(f"sheet: {sheet}  (rows: control, {first}, {second} for each)", highlight=False, soft_wrap=True)


def picture_folders(output: Path, one: Score, other: Score) -> list[tuple[str, Path]]:
    """Folders of the control's, the first's and the second's pictures of a cell, as far as the record names them."""
    from persbench.pipeline.store import existing_store

    keys = (("control", one.pictures.get("control")), ("first", one.pictures.get("attacked")), ("second", other.pictures.get("attacked")))
    store = existing_store(output)
    return [(label, store.fetched("generate", key) if store else output / "store" / "generate" / key) for label, key in keys if key]


def write_sheet(path: Path, output: Path, pairs: Sequence[tuple[Score, Score]]) -> None:
    """Pictures of the cells, eight a row at most: control, first, second. Raises PersbenchError where they are gone."""
    from persbench import pictures

    folders = [folder for pair in pairs for _, folder in picture_folders(output, *pair)]
    pictures.sheet([pictures.read(sorted(folder.glob("*.png"))[:8]) for folder in folders], path)


def print_comparison(console: Console, found: Comparison) -> None:
    """The differences under each attack, then per subject; readable in 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from persbench.leaderboard.terminal import interval, number

    def table(title: str, *headings: str) -> Table:
        made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for place, heading in enumerate(headings):
            made.add_column(heading, justify="right" if place else "left", overflow="fold")
        return made

    names = escape(found.first.name), escape(found.second.name)
    title = f"protection of {names[0]} minus that of {names[1]}"
    by_attack = table(title, "attack", "difference", "subjects", "p", "corrected p")
    for each in found.attacks:
        held = each.difference.interval
        by_attack.add_row(escape(each.attack), interval(held), str(held.subjects), number(each.difference.p, 3), number(each.corrected, 3))
    if found.worst and len(found.attacks) > 1:
        held = found.worst.interval
        by_attack.add_row(f"worst of {len(found.attacks)}", interval(held), str(held.subjects), number(found.worst.p, 3), "", style="bold")
    console.print(by_attack)
    subjects = table("worst case per subject", "subject", names[0], "under", names[1], "under", "difference")
    for subject, ((one, under), (other, where)) in found.worst_by_subject.items():
        subjects.add_row(escape(subject), number(one), escape(under), number(other), escape(where), number(one - other))
    console.print(subjects)
    if found.first.threat_model != found.second.threat_model:
        console.print(
            f"threat models differ: {names[0]} is {found.first.threat_model}-level, {names[1]} {found.second.threat_model}-level.",
            highlight=False,
        )
    console.print(
        "difference: mean over subjects with its 95% interval, on the same subjects, attacks and seeds. p: sign flips of whole subjects;\n"
        "with n subjects it is never under 2^(1-n). corrected: by Holm, for the number of attacks.",
        style="dim",
        highlight=False,
    )
