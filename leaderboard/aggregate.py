"""From records to scores: per cell, then per method and attack, then the worst case over attacks."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persbench.errors import PersbenchError
from persbench.stats import Interval, bootstrap, protection, worst_case

JUDGES_AGREE = 0.25  # protections by the two judges that differ by more are flagged


@dataclass(frozen=True)
class Score:
    """What a cell says; None where it says nothing (void, or no such rows)."""

    method: str
    attack: str
    subject: str
    seed: int
    leak: float | None
    leak_seen: float | None  # the same over the pictures that show somebody of the subject's class, as the judges gave it
    control: float | None
    floor: float | None
    protection: float | None
    void: bool
    judges: Mapping[str, float | None]  # protection by each judge alone
    shown: float | None  # share of the adversary's pictures that are nearer to the control than to the floor, in the mean of the judges
    bystanders: Mapping[str, float | None]  # share of undefended personalization that each keeps; None: void
    detected: float | None
    alignment: float | None
    control_alignment: float | None
    linf_levels: float | None
    psnr: float | None
    lpips: float | None
    prior_class: float | None
    prior_lpips: float | None
    protect_seconds: float | None
    peak_mib: float | None
    errors: tuple[str, ...] = ()
    track: str = ""
    base: str = ""
    variant: str = ""  # options that differ from the defaults, as text
    record: str = ""


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _subtract_ratio(leak: float | None, control: float | None, floor: float | None, margin: float) -> float | None:
    if leak is None or control is None or floor is None:
        return None
    return protection(leak, control, floor, margin)


def variant_name(cell: Mapping[str, Any]) -> str:
    """The options of a run as text: "persguard-target.steps=100"; "" for a standard run."""
    parts = [f"{plugin}.{key}={value}" for plugin, options in cell["options"] for key, value in options]
    if cell["budget"] is not None:
        parts.append(f"budget={cell['budget']:g}")
    return ", ".join(parts)


def score(record: Mapping[str, Any], name: str = "") -> Score:
    """The scores of a record, from its rows alone."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    errors = []
    for row in record["rows"]:
        if row["value"] is None:
            errors.append(row["error"])
        else:
            values[row["metric"], row["set"]].append(row["value"])
    judges = sorted({metric.removeprefix("identity:") for metric, _ in values if metric.startswith("identity:")})
    margin = record["margin"]

    def mean(metric: str, label: str) -> float | None:
        return _mean(values.get((metric, label), ()))

    def counted(judge: str, prefix: str, label: str) -> list[float] | None:
        """Similarities as they count. A picture less like the subject than strangers are by chance, or without anybody of the subject's
        class, counts as the floor: it must not offset another one, and judges know nothing of a robot in the subject's colours."""
        found, least = values.get((f"identity:{judge}", prefix + label)), mean(f"identity:{judge}", f"{prefix}floor")
        if not found or least is None:
            return None
        seen = values.get(("detected", prefix + label), [1.0] * len(found))
        if len(seen) != len(found):  # some pictures gave an error row
            return None
        return [max(value, least) if there else least for value, there in zip(found, seen, strict=True)]

    def by_one(judge: str, label: str, prefix: str = "") -> float | None:
        return _mean(counted(judge, prefix, label) or ())

    def similarity(label: str, prefix: str = "") -> float | None:
        each = [by_one(judge, label, prefix) for judge in judges]
        return None if None in each or not each else _mean(each)

    def similarity_seen() -> float | None:
        there = values.get(("detected", "attacked"), ())
        each = []
        for judge in judges:
            found = values.get((f"identity:{judge}", "attacked"), ())
            each.append(_mean(value for value, seen in zip(found, there, strict=True) if seen) if len(found) == len(there) else None)
        return None if None in each else _mean(each)

    def shown() -> float | None:
        found = []
        for judge in judges:
            control, floor = mean(f"identity:{judge}", "control"), mean(f"identity:{judge}", "floor")
            pictures = counted(judge, "", "attacked")
            if control is None or floor is None or not pictures or control - floor < margin:
                return None
            found.append([(value - floor) / (control - floor) for value in pictures])
        same = len({len(shares) for shares in found}) == 1
        return _mean(statistics.fmean(shares) > 0.5 for shares in zip(*found, strict=True)) if same else None

    def kept(bystander: str) -> float | None:
        now, control, floor = (similarity(label, f"bystander:{bystander}:") for label in ("attacked", "control", "floor"))
        lost = _subtract_ratio(now, control, floor, margin)
        return None if lost is None else 1 - lost

    leak, control, floor = similarity("attacked"), similarity("control"), similarity("floor")
    names = sorted({label.split(":")[1] for _, label in values if label.startswith("bystander:")})
    priors = sorted({label for _, label in values if label.startswith("prior:")})
    by_judge = {judge: _subtract_ratio(*(by_one(judge, label) for label in ("attacked", "control", "floor")), margin) for judge in judges}
    spent = record["stages"].get("protect", {})
    cell = record["cell"]
    return Score(
        method=cell["method"],
        attack=cell["attack"],
        subject=cell["subject"],
        seed=cell["seed"],
        leak=leak,
        leak_seen=similarity_seen(),
        control=control,
        floor=floor,
        protection=_subtract_ratio(leak, control, floor, margin),
        void=control is not None and floor is not None and control - floor < margin,
        judges=by_judge,
        shown=shown(),
        bystanders={bystander: kept(bystander) for bystander in names},
        detected=mean("detected", "attacked"),
        alignment=mean("alignment", "attacked"),
        control_alignment=mean("alignment", "control"),
        linf_levels=max(values.get(("linf_levels", "released"), [0.0])),
        psnr=mean("psnr", "released"),
        lpips=mean("lpips", "released"),
        prior_class=_mean(mean("prior_class", label) for label in priors),
        prior_lpips=_mean(mean("prior_lpips", label) for label in priors),
        protect_seconds=spent.get("seconds"),
        peak_mib=spent.get("peak_mib"),
        errors=tuple(errors),
        track=cell["track"],
        base=cell["base"],
        variant=variant_name(cell),
        record=name,
    )


@dataclass(frozen=True)
class Line:
    """One line of the leaderboard: a method under one attack, or in the worst case over all its attacks."""

    method: str
    attack: str
    protection: Interval | None
    bystanders: Interval | None
    voids: int
    errors: int
    means: Mapping[str, float | None] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


_MEANS = (
    "leak leak_seen control floor shown detected alignment control_alignment linf_levels psnr lpips"
    " prior_class prior_lpips protect_seconds peak_mib"
).split()


def line(method: str, attack: str, scores: list[Score]) -> Line:
    """Scores of one method, one attack (or the worst case), as a line with clustered intervals."""
    by_subject: dict[str, list[float]] = defaultdict(list)
    by_bystander: dict[str, list[float]] = defaultdict(list)
    for each in scores:
        if each.protection is not None:
            by_subject[each.subject].append(each.protection)
        for share in each.bystanders.values():
            if share is not None:
                by_bystander[each.subject].append(share)
    flags = []
    if any(each.void for each in scores):
        flags.append("void controls")
    mixed = [e for e in scores if None not in e.judges.values() and len(e.judges) > 1]
    if any(max(e.judges.values()) - min(e.judges.values()) > JUDGES_AGREE for e in mixed):  # type: ignore[type-var, operator]
        flags.append("judges disagree")
    return Line(
        method,
        attack,
        bootstrap(by_subject) if by_subject else None,
        bootstrap(by_bystander) if by_bystander else None,
        sum(each.void for each in scores),
        sum(bool(each.errors) for each in scores),
        {name: _mean(getattr(each, name) for each in scores) for name in _MEANS},
        tuple(flags),
    )


def rank(scores: list[Score]) -> list[Line]:
    """Lines of all methods (with variants apart): each attack, and the worst case where there are several; best first."""
    groups: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for each in scores:
        name = f"{each.method} ({each.variant})" if each.variant and each.method != "none" else each.method
        groups[name][each.attack].append(each)
    lines = []
    for method, attacks in groups.items():
        lines += [line(method, attack, found) for attack, found in sorted(attacks.items())]
        standard = {a: {s.subject: s.protection for s in found if s.protection is not None} for a, found in attacks.items()}
        if len(attacks) > 1:
            worst = worst_case(standard)
            everything = [s for found in attacks.values() for s in found]
            summary = line(method, f"worst of {len(attacks)}", everything)
            interval = bootstrap({k: [v] for k, v in worst.items()}) if worst else None
            lines.append(Line(**{**vars(summary), "protection": interval}))
    return sorted(lines, key=lambda entry: -entry.protection.mean if entry.protection else 1e9)


def read_records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All records below an output folder. Raises PersbenchError when there are none."""
    paths = sorted((folder / "records").glob("*.json"))
    if not paths:
        raise PersbenchError(f"no records in {folder / 'records'}; run something first: persbench run --method persguard-target")
    found = []
    for path in paths:
        try:
            found.append((path, json.loads(path.read_text("utf-8"))))
        except ValueError:
            raise PersbenchError(f"record {path} is not JSON; delete it and run again") from None
    return found
