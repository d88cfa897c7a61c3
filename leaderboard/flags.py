"""Flags: signs in the numbers that an evaluation may be wrong. Each has a section in docs/flags.md.

After the flags of AutoAttack (Croce and Hein, ICML 2020, its `flags_doc.md`): a name, a test on the rows, an explanation, what to do.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persbench.stats import bootstrap, differences

if TYPE_CHECKING:
    from .aggregate import Board, Entry, Row

JUDGES_AGREE = 0.25  # protections of a cell by two judges that differ by more
NOTICEABLE = 0.1  # a difference of protections that is worth a flag
SIMILAR = 0.05  # similarities, shares and probabilities that differ by less are the same


@dataclass(frozen=True)
class Raised:
    """A flag on a row, and where it was seen."""

    name: str
    detail: str


@dataclass(frozen=True)
class Flag:
    """A sign that an evaluation may be wrong. `test` says where it is seen ("" where it is not)."""

    name: str
    test: Callable[[Row, Board], str]
    explanation: str
    remedy: str


def raise_flags(row: Row, board: Board) -> tuple[Raised, ...]:
    """The flags of a row, as measured."""
    return tuple(Raised(flag.name, detail) for flag in FLAGS if (detail := flag.test(row, board)))


def is_stronger(attack: str, other: str) -> bool:
    """Whether an attack is another one with something added: a countermeasure, a tampering, or a prompt shift.

    >>> is_stronger("longer+lora", "lora"), is_stronger("lora", "longer+lora"), is_stronger("jpeg+dreambooth", "lora")
    (True, False, False)
    """
    from .aggregate import split_attack

    (parts, shift), (fewer, no_shift) = split_attack(attack), split_attack(other)
    rest = iter(parts[:-1])
    return attack != other and parts[-1] == fewer[-1] and all(part in rest for part in fewer[:-1]) and no_shift in ("", shift)


def over_budget(row: Row, board: Board) -> str:
    if row.threat_model in ("none", "unknown"):
        return ""
    allowed = row.budget_levels or 0.0
    worst = max((each.linf_levels or 0.0 for each in row.total.scores), default=0.0)
    return f"a photo changed by {worst:.0f} levels, allowed were {allowed:g}" if worst > allowed + 0.5 else ""


def incomplete(row: Row, board: Board) -> str:
    standing = board.standing(row)
    total = len(board.subjects)
    parts = []
    if standing.missing:
        parts.append(f"not run under {', '.join(standing.missing)}")
    if 0 < len(standing.by_subject) < total:
        parts.append(f"worst case over {len(standing.by_subject)} of {total} subjects")
    return "; ".join(parts)


def failures(row: Row, board: Board) -> str:
    failed = row.total.failed
    return f"{len(failed)} of {len(row.total.scores) + len(row.total.gaps)} cells: {failed[0].reason}" if failed else ""


def void_controls(row: Row, board: Board) -> str:
    found = [f"{entry.voids} of {len(entry.scores)} under {attack}" for attack, entry in row.entries.items() if entry.voids]
    return ", ".join(found)


def judges_disagree(row: Row, board: Board) -> str:
    found = []
    for each in row.total.scores:
        known = [value for value in each.judges.values() if value is not None]
        if len(known) > 1 and max(known) - min(known) > JUDGES_AGREE:
            values = " and ".join(f"{value:.2f}" for value in known)
            found.append((max(known) - min(known), f"{each.subject} under {each.attack}: {values}"))
    return f"{len(found)} of {len(row.total.scores)} cells, most for {max(found)[1]}" if found else ""


def helps_the_clean_control(row: Row, board: Board) -> str:
    """Protection of an attack is relative to its own control, so it is the leaks that are compared: plain attack against attack."""
    found = []
    for attack, entry in row.entries.items():
        for plain, simple in row.entries.items():
            if row.threat_model == "none" or not is_stronger(attack, plain):
                continue
            risen = [differences(_values(entry, name), _values(simple, name)) for name in ("leak", "control")]
            protected, clean = (statistics.fmean(each.values()) if each else 0.0 for each in risen)
            if protected > SIMILAR and clean >= 0.9 * protected:
                found.append(f"{attack} against {plain}: leak +{protected:.2f}, clean control +{clean:.2f}")
    return "; ".join(found)


def _values(entry: Entry, name: str) -> dict[tuple[str, ...], float]:
    found = {(each.subject, str(each.seed)): getattr(each, name) for each in entry.scores}
    return {key: value for key, value in found.items() if value is not None}


def stronger_does_worse(row: Row, board: Board) -> str:
    found = []
    for attack, entry in row.entries.items():
        for plain, simple in row.entries.items():
            if row.threat_model != "none" and is_stronger(attack, plain):
                more = differences(_values(entry, "protection"), _values(simple, "protection"))
                mean = statistics.fmean(more.values()) if more else 0.0
                if mean > NOTICEABLE and bootstrap({subject: [value] for subject, value in more.items()}).low > 0:
                    found.append(f"protection under {attack} is {mean:.2f} higher than under {plain}")
    expensive = set(board.attack_sets.get("strong", ())) - set(board.attack_sets.get("standard", ()))
    standard = [e.protection.mean for a, e in row.entries.items() if a not in expensive and e.protection]
    strong = [e.protection.mean for a, e in row.entries.items() if a in expensive and e.protection]
    if row.threat_model != "none" and standard and strong and min(strong) > max(standard) + NOTICEABLE:
        found.append(f"every attack that the strong set adds ({min(strong):.2f} at best) does worse than every standard one")
    return "; ".join(found)


def identity_alone(row: Row, board: Board) -> str:
    found = []
    for attack, entry in row.entries.items():
        means = entry.means
        pairs = [(means[name], means[f"control_{name}"]) for name in ("detected", "alignment", "quality")]
        known = [(now, control) for now, control in pairs if now is not None and control is not None]
        protected = row.threat_model != "none" and entry.protection is not None and entry.protection.mean > 2 * NOTICEABLE
        if protected and known and all(abs(now - control) < SIMILAR for now, control in known):
            found.append(attack)
    return f"under {', '.join(found)}" if found else ""


def sign_flips(row: Row, board: Board) -> str:
    found = []
    for attack, entry in row.entries.items():
        by_seed: dict[int, list[float]] = defaultdict(list)
        for each in entry.scores:
            if each.protection is not None:
                by_seed[each.seed].append(each.protection)
        means = {seed: statistics.fmean(values) for seed, values in by_seed.items()}
        if row.threat_model != "none" and means and min(means.values()) < -SIMILAR and max(means.values()) > SIMILAR:
            found.append(f"{attack}: " + ", ".join(f"seed {seed} {mean:+.2f}" for seed, mean in sorted(means.items())))
    return "; ".join(found)


FLAGS = (
    Flag(
        "over budget",
        over_budget,
        "A published photo differs from the original by more 8-bit levels than the method was allowed, as measured on the saved picture.",
        "Compare it with methods at the budget that was measured, or clip the perturbation and run again.",
    ),
    Flag(
        "void controls",
        void_controls,
        "Without protection the attack did not learn the subject in some cells, so they say nothing; they are left out of every mean.",
        "Give the personalizer more steps, or a higher rate, until it learns clean photos; do not read the rest as a full result.",
    ),
    Flag(
        "errors",
        failures,
        "Cells, or metrics of cells, failed. Their subjects are left out of the worst case, which may then be too good or too bad.",
        "Read the reasons below the table, mend the cause, and give the same command again: only what is missing runs.",
    ),
    Flag(
        "incomplete",
        incomplete,
        "The row was not run under every attack of the set, or not for every subject: its worst case is over fewer than those of others.",
        "Run what is missing. Such a row has no rank: fewer attacks can only look better, and its subjects may be the easier ones.",
    ),
    Flag(
        "control helped as much",
        helps_the_clean_control,
        "What was added to the attack raised the leak of the protected subject, but that of clean photos by as much or more.",
        "Do not call it a break of this protection: the addition makes personalization better in general.",
    ),
    Flag(
        "stronger attack does worse",
        stronger_does_worse,
        "An attack meets more protection than the same attack without one of its parts: a real adversary would leave that part out.",
        "Check the options of what was added (a purifier that ruins the photos, a rate that diverges) before trusting the worst case.",
    ),
    Flag(
        "identity moved alone",
        identity_alone,
        "The identity judges say that the subject is gone, while class, prompt alignment and quality are those of the control.",
        "Look at the pictures: either other individuals of the class are shown, which is a success, or only the judges were led astray.",
    ),
    Flag(
        "judges disagree",
        judges_disagree,
        f"Two identity judges give one cell protections that differ by more than {JUDGES_AGREE}.",
        "Look at the pictures of these cells, and trust the worse of the two values until you have.",
    ),
    Flag(
        "sign flips between seeds",
        sign_flips,
        "With one seed the protection helps, with another it hurts: the mean hides noise that is larger than the effect.",
        "Run more seeds and subjects before ranking this row.",
    ),
)
