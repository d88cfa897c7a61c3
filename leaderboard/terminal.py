"""Scores on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from persbench.stats import Interval

from .aggregate import Entry, Score, line, score

if TYPE_CHECKING:
    from persbench.cli.run import Result


WIDE = 116  # columns of a terminal that has room for the columns that say more


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 makes -0.0 a plain 0.0


def interval(value: Interval | None) -> str:
    """Mean and interval: "0.83 [0.71, 0.92]"."""
    if value is None:
        return "–"
    return number(value.mean) + (f" [{number(value.low)}, {number(value.high)}]" if value.subjects > 1 else "")


def percent(value: float | None) -> str:
    """A share as "38%", or a dash."""
    return "–" if value is None else f"{100 * value:.0f}%"


def verdict(mean: float) -> str:
    """A protection in words and colour."""
    colour, word = ("green", "holds") if mean >= 0.5 else ("yellow", "weak") if mean >= 0.2 else ("red", "fails")
    return f"[{colour}]{word}[/]"


def run_table(title: str, scores: Sequence[tuple[Result, Score | None]]) -> Table:
    """One line for each subject; readable in 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("subject")
    for heading in ("protection", "leak", "control", "floor", "shown", "others keep", "class prompts", "photos change by"):
        table.add_column(heading, justify="right", no_wrap=" " not in heading)
    for result, each in scores:
        if each is None:
            table.add_row(result.cell.subject, "[red]error[/]", *[""] * 7)
            continue
        shares = [share for share in each.bystanders.values() if share is not None]
        held = "–" if each.protection is None else f"{number(each.protection)} {verdict(each.protection)}"
        table.add_row(
            each.subject,
            "void" if each.void else held,
            number(each.leak),
            number(each.control),
            number(each.floor),
            percent(each.shown),
            number(sum(shares) / len(shares) if shares else None),
            percent(each.prior_class),
            f"{each.linf_levels:.0f} levels" if each.linf_levels else "nothing",
        )
    if any(each and each.void for _, each in scores):
        table.caption = "void: the undefended control did not learn the subject, so nothing can be said."
    return table


def print_run(console: Console, results: Sequence[Result], output: Path) -> None:
    """The tables at the end of a run, one for each method and attack, and where everything lies."""
    scores: list[tuple[Result, Score | None]] = [(r, score(r.record, r.path.name) if r.record and r.path else None) for r in results]
    groups: dict[tuple[str, str], list[tuple[Result, Score | None]]] = {}
    for result, each in scores:
        groups.setdefault((result.cell.method, result.cell.attack), []).append((result, each))
    for (method, attack), found in groups.items():
        console.print(run_table(f"How well did {method} hold under {attack}?", found))
        valid = [each for _, each in found if each is not None]
        if len(valid) > 1:
            total = line(method, attack, valid)
            held = f"{interval(total.protection)} {verdict(total.protection.mean)}" if total.protection else "–"
            console.print(
                f"[bold]{len(valid)} subjects:[/] protection {held} · still shown in {percent(total.means['shown'])} of the pictures"
                f" · bystanders keep {interval(total.bystanders)}\n",
                highlight=False,
            )
    console.print(
        "protection: 0 no help, 1 as if the photos had never been seen (in brackets: 95% interval over subjects).\n"
        "leak, control, floor: identity similarity of what the adversary gets, gets without protection, gets without the photos.\n"
        "A picture without anybody of the subject's class counts as the floor. shown: share of the adversary's pictures that show the\n"
        "subject. others keep: share of undefended personalization that is left for people who are not protected.",
        style="dim",
        highlight=False,
    )
    for result, each in scores:
        cell = result.cell
        for error in each.errors if each else (result.error,):
            console.print(
                f"[red]error:[/] {cell.method} · {cell.attack} · {cell.subject}: {escape(error)}", highlight=False, soft_wrap=True
            )
    console.print(f"records:  {output / 'records'}", highlight=False, soft_wrap=True)
    for result in results:
        if result.record:
            console.print(
                f"pictures: {result.record['sheet']}  ({result.cell.method}, {result.cell.subject})", highlight=False, soft_wrap=True
            )


def print_leaderboard(console: Console, lines: Sequence[Entry], disclaimers: Sequence[str]) -> None:
    """The ranked lines."""
    table = Table(title="persbench leaderboard", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    wide = console.width >= WIDE
    for heading in ("method", "attack"):
        table.add_column(heading, no_wrap=heading == "method", min_width=9)
    more_headings = ("class seen", "alignment", "class prompts", "PSNR", "seconds") if wide else ()
    for heading in ("protection", "shown", "bystanders keep", *more_headings):
        table.add_column(heading, justify="right", no_wrap=heading in ("protection", "shown") or (wide and heading[0] == "b"))
    table.add_column("flags")
    for place, each in enumerate(lines, 1):
        means = each.means
        flags = [*each.flags, *([f"{each.errors} with errors"] if each.errors else [])]
        more = (
            percent(means["detected"]),
            number(means["alignment"]),
            percent(means["prior_class"]),
            number(means["psnr"], 1) if means["linf_levels"] else "–",
            number(means["protect_seconds"], 0),
        )
        table.add_row(
            str(place),
            each.method,
            each.attack,
            interval(each.protection),
            percent(means["shown"]),
            interval(each.bystanders) if wide else number(each.bystanders.mean if each.bystanders else None),
            *(more if wide else ()),
            ", ".join(flags),
        )
    console.print(table)
    for text in disclaimers:
        if text:
            console.print(text, style="italic", highlight=False)
