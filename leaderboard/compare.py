"""Two methods against each other on the same subjects, attacks and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from persbench.errors import PersbenchError, UnknownNameError
from persbench.registry import nearest
from persbench.stats import Difference, holm, paired, worst_case

from .aggregate import Board, Row, Score


@dataclass(frozen=True)
class AttackDifference:
    """Protection of the first minus that of the second under one attack; `corrected` is its p value after Holm over all attacks."""

    attack: str
    difference: Difference
    corrected: float


@dataclass(frozen=True)
class Comparison:
    """The paired comparison of two rows of a board over the attacks that both were run under."""

    board: Board
    first: Row
    second: Row
    worst: Difference | None  # of the worst cases
    worst_by_subject: Mapping[str, tuple[tuple[float, str], tuple[float, str]]]  # value and attack, of the first and the second
    attacks: tuple[AttackDifference, ...]
    cells: tuple[tuple[Score, Score], ...]  # the same subject, attack and seed; the largest difference first


def find_rows(boards: Sequence[Board], first: str, second: str) -> tuple[Board, Row, Row]:
    """The first board that has both, by the names of rows. Raises UnknownNameError for a name that is on no board, PersbenchError for two
    that are on no board together."""
    known = {row.name for board in boards for row in board.rows}
    for name in (first, second):
        if name not in known:
            raise UnknownNameError(f"no row {name!r} on the leaderboard; {nearest(name, known)}")
    for board in boards:
        names = {row.name for row in board.rows}
        if {first, second} <= names:
            return board, board.row(first), board.row(second)
    raise PersbenchError(f"{first} and {second} were never run on the same track, base model and protocol: they cannot be compared")


def compare(board: Board, first: Row, second: Row) -> Comparison:
    """Compare two rows of a board. Raises PersbenchError where they share no cell."""
    pairs = []
    differences: dict[str, Difference] = {}
    shared = [attack for attack in first.entries if attack in second.entries]
    for attack in shared:
        one, other = (_by_cell(row.entries[attack].scores) for row in (first, second))
        if difference := paired(_protections(one), _protections(other)):
            differences[attack] = difference
        pairs += [(one[key], other[key]) for key in sorted(one.keys() & other.keys())]
    if not pairs:
        raise PersbenchError(f"{first.name} and {second.name} have no subject, attack and seed in common")
    corrected = holm([difference.p for difference in differences.values()])
    one_worst, other_worst = (worst_case({attack: row.entries[attack].by_subject for attack in differences}) for row in (first, second))
    both = sorted(one_worst.keys() & other_worst.keys())
    return Comparison(
        board,
        first,
        second,
        paired({(subject,): one_worst[subject][0] for subject in both}, {(subject,): other_worst[subject][0] for subject in both}),
        {subject: (one_worst[subject], other_worst[subject]) for subject in both},
        tuple(AttackDifference(attack, each, p) for (attack, each), p in zip(differences.items(), corrected, strict=True)),
        tuple(sorted(pairs, key=lambda pair: -abs((pair[0].protection or 0.0) - (pair[1].protection or 0.0)))),
    )


def _by_cell(scores: Sequence[Score]) -> dict[tuple[str, ...], Score]:
    return {(each.subject, str(each.seed)): each for each in scores if each.protection is not None}


def _protections(cells: Mapping[tuple[str, ...], Score]) -> dict[tuple[str, ...], float]:
    return {key: each.protection for key, each in cells.items() if each.protection is not None}
