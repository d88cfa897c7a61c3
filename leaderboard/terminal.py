"""Scores on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from persbench.stats import Interval, Rank

from .aggregate import BASELINES, Board, Entry, Gap, Score, boards, disclaimer, line, score, track_sets
from .flags import FLAGS

if TYPE_CHECKING:
    from persbench.cli.run import Result

    from .reported import Paper


TABLES, SHEETS = 12, 8  # how many tables a run prints, and places of pictures
WIDE = 144  # columns of a terminal that has room for the columns that say more


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
            table.add_row(result.cell.subject, "[yellow]skipped[/]" if result.skipped else "[red]error[/]", *[""] * 7)
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
    """What came of a run: a table for each method and attack, or a leaderboard where these are many; and where everything lies."""
    if len({(result.cell.method, result.cell.attack) for result in results}) > TABLES:
        found = [(r.path, r.record or json.loads(r.path.read_text("utf-8"))) for r in results if r.path]
        made = boards(found, track_sets)
        print_leaderboard(console, made, {board.track: disclaimer(board.track) for board in made})
    else:
        _print_tables(console, results)
    console.print(f"records:  {output / 'records'}", highlight=False, soft_wrap=True)
    drawn = [(result.cell, result.record["sheet"]) for result in results if result.record]
    for cell, sheet in drawn[:SHEETS]:
        console.print(f"pictures: {sheet}  ({cell.method} · {cell.attack} · {cell.subject})", highlight=False, soft_wrap=True)
    if len(drawn) > SHEETS:
        more = f"and {len(drawn) - SHEETS} more: persbench leaderboard --output {output} --site DIR shows them"
        console.print(more, highlight=False, soft_wrap=True)


def _print_tables(console: Console, results: Sequence[Result]) -> None:
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
        if result.skipped:
            console.print(f"[yellow]skipped:[/] {cell.method} · {cell.attack} · {cell.subject}: {escape(result.skipped)}", highlight=False)
            continue
        for error in each.errors if each else (result.error,):
            console.print(
                f"[red]error:[/] {cell.method} · {cell.attack} · {cell.subject}: {escape(error)}", highlight=False, soft_wrap=True
            )


def place(rank: Rank | None) -> str:
    """A rank with its interval: "2 (1–4)"."""
    if rank is None:
        return ""
    return str(rank.place) + (f" ({rank.low}–{rank.high})" if rank.low != rank.high else "")


def board_table(board: Board, wide: bool, letters: Mapping[str, str], details: bool) -> Table:
    """Rows of a board, the worst case first; with `details` a line below each for every attack. Readable in 80 columns."""
    attacks = board.attack_sets[board.attack_set]
    count = len(board.subjects)
    title = f"{board.track} · {count} subject{'s' * (count != 1)} · attack set {board.attack_set} ({len(attacks)})"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("method", overflow="fold", min_width=22 if wide else 16)
    table.add_column("threat", no_wrap=True)
    table.add_column("worst case", justify="right", no_wrap=True)
    table.add_column("weakest\nunder", overflow="fold", min_width=9)
    more = ("fails by", "shown", "class\nseen", "align-\nment", "class\nprompts", "levels", "PSNR", "seconds") if wide else ()
    for heading in ("others\nkeep", *more):
        table.add_column(heading, justify="right", no_wrap=heading != "fails by")
    table.add_column("flags", overflow="fold", min_width=5)

    def cells(entry: Entry, worst: Entry) -> list[str]:
        """Costs are of all attacks; how the adversary fails is of the worst one."""
        means, pictures = entry.means, worst.means
        kept = number(entry.bystanders.mean if entry.bystanders else None)
        if not wide:
            return [kept]
        photos = (number(means["linf_levels"], 0), number(means["psnr"], 1)) if means["linf_levels"] else ("–", "–")
        seen = (percent(pictures["shown"]), percent(pictures["detected"]), number(pictures["alignment"]))
        return [kept, worst.failure_mode or "–", *seen, percent(means["prior_class"]), *photos, number(means["protect_seconds"], 0)]

    for row in board.rows:
        standing = board.standing(row)
        shown = "".join(letters[flag.name] for flag in row.flags)
        worst = row.entries.get(standing.weakest, row.total)
        head = (place(standing.rank), escape(row.name), row.threat_model, interval(standing.protection), escape(standing.weakest))
        table.add_row(*head, *cells(row.total, worst), shown, style="" if row.method not in BASELINES else "italic")
        for attack, entry in row.entries.items() if details else ():
            empty = "void" if entry.voids else entry.gaps[0].status if entry.gaps else "–"
            held = interval(entry.protection) if entry.protection else empty
            note = "" if attack in attacks else "not in the set"
            table.add_row("", f"· {escape(attack)}", "", held, note, *cells(entry, entry), "", style="dim")
    return table


def print_leaderboard(
    console: Console,
    boards: Sequence[Board],
    disclaimers: Mapping[str, str],
    details: bool = False,
    reported: Sequence[Paper] = (),
) -> None:
    """Every board with its flags, skips and errors; then what papers report, in tables of their own."""
    for board in boards:
        names = [flag.name for flag in FLAGS if any(flag.name == raised.name for row in board.rows for raised in row.flags)]
        letters = dict(zip(names, ascii_lowercase, strict=False))
        console.print(board_table(board, console.width >= WIDE, letters, details))
        for flag in FLAGS:
            if flag.name in letters:
                console.print(f"[bold]{letters[flag.name]}[/] {flag.name}: {flag.explanation}", highlight=False)
        if details:
            for row in board.rows:
                for raised in row.flags:
                    console.print(f"  {escape(row.name)}: {raised.name}: {escape(raised.detail)}", highlight=False)
        for text in gap_lines(board):
            console.print(text, highlight=False)
        console.print(
            "worst case: per subject the least protection over the attack set (0 no help, 1 as if the photos had never been seen), then "
            "the mean with its 95% interval over subjects. #: rank with its interval; none for a row that lacks attacks or subjects. "
            "threat: what the protector changes, image (the photos) or model (the released model); rank one alone with --threat-model.",
            style="dim",
            highlight=False,
        )
        if disclaimers.get(board.track):
            console.print(disclaimers[board.track], style="italic", highlight=False)
        console.print()
    for paper in reported:
        console.print(paper_table(paper))
        console.print(f"[bold]reported[/], not measured here: {escape(paper.source)}. {escape(paper.protocol)}\n", highlight=False)


def gap_lines(board: Board) -> list[str]:
    """Skips and errors by reason: how many cells, and of what."""
    groups: dict[tuple[str, str], list[Gap]] = {}
    for row in board.rows:
        for gap in (*row.total.skipped, *row.total.failed):
            groups.setdefault((gap.status, gap.reason), []).append(gap)

    def some(names: set[str]) -> str:
        ordered = sorted(names)
        return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")

    lines = []
    for (status, reason), gaps in sorted(groups.items()):
        where = f"{some({gap.method for gap in gaps})} under {some({gap.attack for gap in gaps})}"
        colour = "yellow" if status == "skipped" else "red"
        cells = f"{len(gaps)} cell{'s' * (len(gaps) > 1)}"
        lines.append(f"[{colour}]{status}[/] {cells} ({escape(where)}): {escape(reason)}")
    return lines


def paper_table(paper: Paper) -> Table:
    """What a paper reports; an arrow says in which direction a metric means more protection."""
    table = Table(title=f"reported · {paper.title}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    table.add_column("threat", no_wrap=True)
    for metric in paper.metrics:
        table.add_column(metric.label, justify="right")
    for entry in paper.rows:
        values = ("–" if (value := entry.values.get(metric.name)) is None else f"{value:g}" for metric in paper.metrics)
        table.add_row(escape(entry.method), entry.threat_model, *values)
    return table
