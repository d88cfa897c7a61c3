"""Scores on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from persbench.stats import Interval

from .aggregate import Line, Score, line, score

if TYPE_CHECKING:
    from persbench.cli.run import Result


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(value: Interval | None) -> str:
    """Mean and interval: "0.83 [0.71, 0.92]"."""
    if value is None:
        return "–"
    return f"{value.mean:.2f}" + (f" [{value.low:.2f}, {value.high:.2f}]" if value.subjects > 1 else "")


def verdict(mean: float) -> str:
    """A protection in words and colour."""
    colour, word = ("green", "holds") if mean >= 0.5 else ("yellow", "weak") if mean >= 0.2 else ("red", "fails")
    return f"[{colour}]{word}[/]"


def print_run(console: Console, results: Sequence[Result], output: Path) -> None:
    """The table at the end of a run, and where everything lies."""
    scores: list[tuple[Result, Score | None]] = [(r, score(r.record, r.path.name) if r.record and r.path else None) for r in results]
    table = Table(title="How well did the protection hold?", title_justify="left", caption_justify="left")
    for heading in ("method", "attack", "subject"):
        table.add_column(heading)
    for heading in ("protection", "", "leak", "control", "floor", "bystanders keep", "class prompts right", "photo change"):
        table.add_column(heading, justify="right" if heading else "left")
    for result, each in scores:
        cell = result.cell
        if each is None:
            table.add_row(cell.method, cell.attack, cell.subject, "[red]error[/]", *[""] * 7)
            continue
        shares = [share for share in each.bystanders.values() if share is not None]
        changed = f"{each.linf_levels:.0f} levels" if each.linf_levels else "none"
        table.add_row(
            each.method,
            each.attack,
            each.subject,
            "void" if each.void else number(each.protection),
            "control did not learn" if each.void else "" if each.protection is None else verdict(each.protection),
            number(each.leak),
            number(each.control),
            number(each.floor),
            number(sum(shares) / len(shares) if shares else None),
            number(each.prior_class),
            changed,
        )
    groups: dict[tuple[str, str], list[Score]] = {}
    for _, each in scores:
        if each is not None:
            groups.setdefault((each.method, each.attack), []).append(each)
    for (method, attack), found in groups.items():
        if len(found) > 1:
            total = line(method, attack, found)
            table.add_section()
            mean = total.protection.mean if total.protection else None
            table.add_row(
                f"[bold]{method}",
                attack,
                f"[bold]{len(found)} subjects",
                f"[bold]{interval(total.protection)}",
                verdict(mean) if mean is not None else "",
                number(total.means["leak"]),
                number(total.means["control"]),
                number(total.means["floor"]),
                interval(total.bystanders),
                number(total.means["prior_class"]),
                "",
            )
    console.print(table)
    console.print(
        "protection: 0 no help, 1 as if the photos had never been seen. leak, control, floor: identity similarity of what the\n"
        "adversary gets, gets without protection, and gets without the photos. bystanders keep: share of undefended personalization.",
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


def print_leaderboard(console: Console, lines: Sequence[Line], disclaimers: Sequence[str]) -> None:
    """The ranked lines."""
    table = Table(title="persbench leaderboard", title_justify="left")
    table.add_column("#", justify="right")
    for heading in (
        "method",
        "attack",
        "protection [95%]",
        "bystanders keep",
        "leak",
        "control",
        "alignment",
        "class prompts",
        "PSNR",
        "seconds",
        "flags",
    ):
        table.add_column(heading)
    for place, each in enumerate(lines, 1):
        means = each.means
        flags = [*each.flags, *([f"{each.errors} with errors"] if each.errors else [])]
        table.add_row(
            str(place),
            each.method,
            each.attack,
            interval(each.protection),
            interval(each.bystanders),
            number(means["leak"]),
            number(means["control"]),
            number(means["alignment"]),
            number(means["prior_class"]),
            number(means["psnr"], 1),
            number(means["protect_seconds"], 0),
            ", ".join(flags),
        )
    console.print(table)
    for text in disclaimers:
        if text:
            console.print(text, style="italic", highlight=False)
