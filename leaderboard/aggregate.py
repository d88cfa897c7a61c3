"""From records to scores: per cell, then rows (a method under all its attacks) on boards (what may be compared).

Everything follows from the records alone: `score` reads one, `boards` all of them. From small to large: `Score` (a cell), `Entry` (a row
under one attack), `Row` (a method with its options, budget and group size), `Board` (rows of equal track, base model and protocol).
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from persbench import registry
from persbench.errors import PersbenchError, UnknownNameError
from persbench.registry import nearest
from persbench.stats import Interval, Rank, bootstrap, protection, ranks, worst_case

from .flags import Raised, raise_flags

ThreatModel = Literal["none", "image", "model", "both", "unknown"]
THREATS: dict[ThreatModel, str] = {
    "none": "no protection",
    "image": "image-level: the protector changes the published photos alone",
    "model": "model-level: the protector changes the released model alone",
    "both": "photos and model: the protector changes both",
    "unknown": "not known: no cell of this method ran",
}
BASELINES = ("none",)  # what protection is measured against; it has no place of its own


@dataclass(frozen=True)
class Score:
    """What a cell says; None where it says nothing (void, or no such rows)."""

    method: str
    attack: str  # with the options that the run gave to its parts: "lora(steps=300)"
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
    variant: str = ""  # the method's options that differ from the defaults, as text
    record: str = ""
    control_detected: float | None = None
    quality: float | None = None  # mean of the metrics named quality or quality:...
    control_quality: float | None = None
    ssim: float | None = None
    prior_class_base: float | None = None
    attack_seconds: float | None = None  # what the adversary spent on the protected subject
    budget_levels: float | None = None  # what the method was allowed; None where it does not change photos
    threat_model: ThreatModel = "unknown"
    group: tuple[str, ...] = ()  # subjects that one release protects together
    pictures: Mapping[str, str] = field(default_factory=dict)  # set -> key of its folder below store/generate


@dataclass(frozen=True)
class Gap:
    """A cell without a score, and why."""

    status: str  # "skipped" or "error"
    method: str
    attack: str
    subject: str
    seed: int
    reason: str
    record: str = ""


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _subtract_ratio(leak: float | None, control: float | None, floor: float | None, margin: float) -> float | None:
    if leak is None or control is None or floor is None:
        return None
    return protection(leak, control, floor, margin)


def split_attack(text: str) -> tuple[tuple[str, ...], str]:
    """Parts (the personalizer last) and prompt shift of an attack, as text.

    >>> split_attack("jpeg(quality=50)+longer+lora@identifier")
    (('jpeg(quality=50)', 'longer', 'lora'), 'identifier')
    """
    before, _, shift = text.partition("@")
    return tuple(re.split(r"\+(?![^()]*\))", before)), shift


def attack_name(cell: Mapping[str, Any]) -> str:
    """The attack with the options that the run gave to its parts; those written in the attack itself come first."""
    given = dict(cell["options"])
    parts, shift = split_attack(cell["attack"])

    def full(part: str) -> str:
        name, _, written = part.partition("(")
        if name not in given:
            return part
        options = {key: str(value) for key, value in given[name]}
        options |= dict(item.split("=", 1) for item in written.rstrip(")").split(",") if item)
        return f"{name}({','.join(f'{key}={value}' for key, value in options.items())})"

    return "+".join(map(full, parts)) + (f"@{full(shift)}" if shift else "")


def variant_name(cell: Mapping[str, Any]) -> str:
    """The options that a run gave to the method, as text: "persguard-target.steps=100"; "" for a standard run."""
    return ", ".join(f"{name}.{key}={value}" for name, options in cell["options"] for key, value in options if name == cell["method"])


def _threat_model(record: Mapping[str, Any]) -> ThreatModel:
    """What the stages say that the protection changed."""
    if record["cell"]["method"] == "none":
        return "none"
    configs = record.get("configs", {})
    if "protect" not in configs:
        return "none" if configs else "unknown"
    if configs["protect"].get("budget_levels") is None:
        return "model"
    changed = any(str(parts.get("model", "")).startswith("protect:") for name, parts in configs.items() if name.startswith("attacked:"))
    return "both" if changed else "image"


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
    by_judge = {j: _subtract_ratio(by_one(j, "attacked"), by_one(j, "control"), by_one(j, "floor"), margin) for j in judges}
    spent = record["stages"].get("protect", {})
    attacking = [stage["seconds"] for name, stage in record["stages"].items() if name.startswith("attacked:")]
    cell = record["cell"]

    def quality(label: str) -> float | None:
        found = {metric for metric, _ in values if metric.partition(":")[0] == "quality"}
        return _mean(mean(metric, label) for metric in sorted(found))

    return Score(
        method=cell["method"],
        attack=attack_name(cell),
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
        control_detected=mean("detected", "control"),
        quality=quality("attacked"),
        control_quality=quality("control"),
        ssim=mean("ssim", "released"),
        prior_class_base=_mean(mean("prior_class_base", label) for label in priors),
        attack_seconds=sum(attacking) if attacking else None,
        budget_levels=record.get("configs", {}).get("protect", {}).get("budget_levels"),
        threat_model=_threat_model(record),
        group=tuple(cell.get("group") or ()),
        pictures=record.get("pictures", {}),
    )


# What an entry has means of: the names of fields of Score.
MEANS = (
    "leak leak_seen control floor shown detected control_detected alignment control_alignment quality control_quality"
    " linf_levels psnr ssim lpips prior_class prior_class_base prior_lpips protect_seconds attack_seconds peak_mib"
).split()


def _seeds(scores: Iterable[Score]) -> dict[str, list[float]]:
    """Protections of each subject over seeds; empty where every control is void. A cell whose judges failed has no entry."""
    found: dict[str, list[float]] = {}
    for each in scores:
        if each.protection is not None:
            found.setdefault(each.subject, []).append(each.protection)
        elif each.void:
            found.setdefault(each.subject, [])
    return found


def _interval(values: Mapping[str, Sequence[float]]) -> Interval | None:
    return bootstrap(values) if any(map(len, values.values())) else None


@dataclass(frozen=True)
class Entry:
    """Cells of one method under one attack, or under several."""

    method: str
    attack: str
    scores: tuple[Score, ...]
    gaps: tuple[Gap, ...] = ()

    @cached_property
    def by_subject(self) -> dict[str, list[float]]:
        """Protections over seeds for each subject that has a score; empty where void."""
        return _seeds(self.scores)

    @cached_property
    def protection(self) -> Interval | None:
        """Mean over subjects with its interval."""
        return _interval(self.by_subject)

    @cached_property
    def bystanders(self) -> Interval | None:
        """Share of undefended personalization that bystanders keep, clustered by the protected subject."""
        found: dict[str, list[float]] = defaultdict(list)
        for each in self.scores:
            found[each.subject] += [share for share in each.bystanders.values() if share is not None]
        return _interval(found)

    @cached_property
    def means(self) -> dict[str, float | None]:
        """Means over cells of everything else that a `Score` has."""
        return {name: _mean(getattr(each, name) for each in self.scores) for name in MEANS}

    @property
    def voids(self) -> int:
        """Cells whose control did not learn the subject."""
        return sum(each.void for each in self.scores)

    @property
    def skipped(self) -> tuple[Gap, ...]:
        """Cells that cannot exist."""
        return tuple(gap for gap in self.gaps if gap.status == "skipped")

    @property
    def failed(self) -> tuple[Gap, ...]:
        """Cells that failed, and cells of which some metric failed."""
        metrics = [Gap("error", s.method, s.attack, s.subject, s.seed, "; ".join(s.errors), s.record) for s in self.scores if s.errors]
        return (*(gap for gap in self.gaps if gap.status != "skipped"), *metrics)

    @cached_property
    def failure_mode(self) -> str:
        """How the adversary fails, in words ("" where nothing was measured); never part of a number."""
        means = self.means
        if self.protection is None:
            return ""
        if self.protection.mean < 0.2:
            return "not stopped"

        def lost(now: str) -> bool:
            value, control = means[now], means[f"control_{now}"]
            return value is not None and control is not None and value < 0.5 * control

        if lost("detected"):
            return "class gone"
        return "picture or prompt lost" if lost("quality") or lost("alignment") else "identity lost"


def line(method: str, attack: str, scores: Iterable[Score]) -> Entry:
    """Scores of one method and one attack, as an entry with intervals."""
    return Entry(method, attack, tuple(scores))


@dataclass(frozen=True)
class Standing:
    """The worst case of a row over a set of attacks."""

    attacks: tuple[str, ...]  # of the set, those that the row was run under
    missing: tuple[str, ...]  # of the set, those that it was not run under: it has no place then
    protection: Interval | None
    by_subject: Mapping[str, tuple[float, str]]  # the minimum and the attack that reaches it
    rank: Rank | None = None  # among all rows
    rank_within: Rank | None = None  # among rows of the same threat model

    @property
    def weakest(self) -> str:
        """The attack that is worst for most subjects ("" where nothing was measured)."""
        counts = Counter(attack for _, attack in self.by_subject.values())
        return max(sorted(counts), key=counts.__getitem__) if counts else ""


@dataclass(frozen=True)
class Row:
    """A method with its options, budget, and number of subjects protected together."""

    method: str
    variant: str
    budget_levels: float | None
    group_size: int
    threat_model: ThreatModel
    name: str  # unique on its board
    entries: Mapping[str, Entry]  # by attack
    total: Entry  # all its cells
    standings: Mapping[str, Standing]  # by name of the attack set
    flags: tuple[Raised, ...] = ()


@dataclass(frozen=True)
class Control:
    """What an attack makes of clean photos and the clean model: the purified-clean control."""

    attack: str
    similarity: Interval
    floor: float | None
    alignment: float | None
    detected: float | None
    by_subject: Mapping[str, float]
    learned: int  # cells whose control learned the subject
    cells: int


@dataclass(frozen=True)
class Board:
    """Rows that may be compared: equal track, base model, protocol, judges and precision."""

    key: str  # short digest of these
    track: str
    base: str
    precision: str
    protocol: Mapping[str, Any]
    rows: tuple[Row, ...]  # by the worst case over the default set, best first
    attack_sets: Mapping[str, tuple[str, ...]]  # "all": every attack that was run; "shared", "standard", ... where they differ
    attack_set: str  # name of the default set
    controls: Mapping[str, Control]  # by attack

    @property
    def subjects(self) -> tuple[str, ...]:
        """All subjects of its rows."""
        scored = {each.subject for row in self.rows for each in row.total.scores}
        return tuple(sorted(scored | {gap.subject for row in self.rows for gap in row.total.gaps}))

    def standing(self, row: Row) -> Standing:
        """A row's worst case over the default set."""
        return row.standings[self.attack_set]

    def view(self, attack_set: str = "", threat: str = "") -> Board:
        """The board over another attack set, or the rows of one threat model alone, ranked among themselves beside what has none.

        Raises UnknownNameError for what the board does not have.
        """
        chosen = attack_set or self.attack_set
        if chosen not in self.attack_sets:
            raise UnknownNameError(f"no attack set {chosen!r} on this board; {nearest(chosen, self.attack_sets)}")
        if threat and threat not in THREATS:
            raise UnknownNameError(f"no threat model {threat!r}; {nearest(threat, THREATS)}")
        rows = [row for row in self.rows if not threat or row.threat_model in (threat, "none")]
        if threat:
            within = {row.name: {name: replace(s, rank=s.rank_within) for name, s in row.standings.items()} for row in rows}
            rows = [replace(row, standings=within[row.name]) for row in rows]
        return _flagged(replace(self, rows=tuple(rows), attack_set=chosen))

    def row(self, name: str) -> Row:
        """A row by its name. Raises UnknownNameError with the nearest name."""
        known = {row.name: row for row in self.rows}
        if name not in known:
            raise UnknownNameError(f"no row {name!r} on the leaderboard; {nearest(name, known)}")
        return known[name]


# Not part of what makes cells comparable: which option a method has by default is its own affair, and those of attacks are in `configs`.
_OWN = ("options",)


def _board_key(record: Mapping[str, Any]) -> str:
    cell = record["cell"]
    protocol = {key: value for key, value in record.get("protocol", {}).items() if key not in _OWN}
    base = record.get("base_digest") or cell["base"]
    content = [cell["track"], base, protocol, record.get("evaluators", ""), cell.get("precision", "fp32"), record.get("margin")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def boards(records: Iterable[tuple[Path, Mapping[str, Any]]], sets: Sets = lambda track: {}) -> list[Board]:
    """All boards of the records, the one with most cells first. Records are read one by one and not kept.

    `sets`: the named lists of attacks ("standard", "strong") of a track. Every board has a set "all", and "shared" (what every method was
    run under) where that is less. The default is "standard" where a row was run under all of it, else "shared", else "all".
    A record without a score (skipped, error) does not say its protocol or budget: it joins the board of its track, base and precision, and
    the row that asked for the same budget.
    """
    found: dict[str, _Cells] = {}
    homes: dict[tuple[str, str, str], str] = {}  # where cells without a score go
    homeless: list[tuple[Gap, Mapping[str, Any], str]] = []
    for path, record in records:
        cell, status, key = record["cell"], record.get("status", "ok"), _board_key(record)
        if status == "ok":
            cells = found.setdefault(key, _Cells(cell, record.get("protocol", {})))
            cells.good.append((score(record, path.name), cell["budget"]))
            homes.setdefault(_home(cell), key)
        else:
            reason = record.get("reason") or "no reason given"
            gap = Gap(status, cell["method"], attack_name(cell), cell["subject"], cell["seed"], reason, path.name)
            homeless.append((gap, cell, key))
    for gap, cell, key in homeless:
        found.setdefault(homes.setdefault(_home(cell), key), _Cells(cell, {})).bad.append((gap, cell))
    made = [_board(key, cells, sets(cells.cell["track"])) for key, cells in found.items()]
    return sorted(made, key=lambda board: (-sum(len(row.total.scores) for row in board.rows), board.track, board.key))


Sets = Callable[[str], Mapping[str, Sequence[str]]]


@dataclass
class _Cells:
    """What a board is made of: scores with the budget that was asked for, gaps with their cells, and one cell of all."""

    cell: Mapping[str, Any]
    protocol: Mapping[str, Any]
    good: list[tuple[Score, float | None]] = field(default_factory=list)
    bad: list[tuple[Gap, Mapping[str, Any]]] = field(default_factory=list)


def _home(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return cell["track"], cell["base"], cell.get("precision", "fp32")


def _board(key: str, cells: _Cells, sets: Mapping[str, Sequence[str]]) -> Board:
    granted: dict[tuple[str, str, float | None], float | None] = {}
    rows: dict[tuple[str, str, float | None, int], tuple[dict[tuple[str, str, int], Score], list[Gap]]] = defaultdict(lambda: ({}, []))
    for each, asked in cells.good:
        granted[each.method, each.variant, asked] = each.budget_levels
        scores, _ = rows[each.method, each.variant, each.budget_levels, _size(each.method, each.group)]
        place = (each.attack, each.subject, each.seed)
        if place not in scores or len(each.bystanders) > len(scores[place].bystanders):  # run again with other bystanders
            scores[place] = each
    for gap, cell in cells.bad:
        method, variant, asked = cell["method"], variant_name(cell), cell["budget"]
        budget = granted.get((method, variant, asked), asked)
        scores, missing = rows[method, variant, budget, _size(method, cell.get("group"))]
        if (gap.attack, gap.subject, gap.seed) not in scores:
            missing.append(gap)
    ran_under = {parts: {place[0] for place in scores} | {gap.attack for gap in missing} for parts, (scores, missing) in rows.items()}
    ran = sorted(set().union(*ran_under.values()), key=_strength)
    attack_sets = {name: tuple(attacks) for name, attacks in sets.items() if set(attacks) & set(ran)} | {"all": tuple(ran)}
    protected = [attacks for (method, *_), attacks in ran_under.items() if method not in BASELINES]
    shared = set.intersection(*protected) if protected else set()
    if shared and shared != set(ran):
        attack_sets["shared"] = tuple(attack for attack in ran if attack in shared)
    made = [_row(*parts, rows, scores, missing, attack_sets) for parts, (scores, missing) in rows.items()]
    standard = "standard" in attack_sets and any(not row.standings["standard"].missing for row in made)
    default = "standard" if standard else "shared" if "shared" in attack_sets else "all"
    return _flagged(
        Board(
            key,
            cells.cell["track"],
            cells.cell["base"],
            cells.cell.get("precision", "fp32"),
            cells.protocol,
            tuple(_ranked(made, attack_sets)),
            attack_sets,
            default,
            _controls([each for each, _ in cells.good], ran),
        )
    )


def _size(method: str, group: Sequence[str] | None) -> int:
    """How many subjects one release protects; for a baseline it makes no difference."""
    return 1 if method in BASELINES else max(1, len(group or ()))


def _flagged(board: Board) -> Board:
    """The board with its rows in order, and their flags raised."""
    rows = sorted(board.rows, key=lambda row: _order(board.standing(row), row))
    return replace(board, rows=tuple(replace(row, flags=raise_flags(row, board)) for row in rows))


def _strength(attack: str) -> tuple[int, str]:
    parts, shift = split_attack(attack)
    return len(parts) + bool(shift), attack


def _order(standing: Standing, row: Row) -> tuple[bool, float, str]:
    """Rows that have a rank first, best first, baselines where they would be; then those that lack attacks or subjects."""
    lacks = bool(standing.missing) or (standing.rank is None and row.method not in BASELINES)
    return lacks, -standing.protection.mean if standing.protection else 1e9, row.name


def _row(
    method: str,
    variant: str,
    budget: float | None,
    size: int,
    every: Iterable[tuple[str, str, float | None, int]],
    scores: Mapping[tuple[str, str, int], Score],
    missing: Sequence[Gap],
    attack_sets: Mapping[str, tuple[str, ...]],
) -> Row:
    name = f"{method} ({variant.replace(f'{method}.', '')})" if variant else method
    if len({other[2] for other in every if other[:2] == (method, variant)}) > 1:
        name += " at its own budget" if budget is None else f" at {budget:g} levels"
    if size > 1:
        name += f", {size} together"
    ordered = [scores[place] for place in sorted(scores)]
    entries = {}
    for attack in attack_sets["all"]:
        cells = tuple(each for each in ordered if each.attack == attack)
        gaps = tuple(gap for gap in missing if gap.attack == attack)
        if cells or gaps:
            entries[attack] = Entry(method, attack, cells, gaps)
    threats: list[ThreatModel] = [each.threat_model for each in ordered if each.threat_model != "unknown"]
    threat = "both" if "both" in threats else threats[0] if threats else declared_threat_model(method)
    standings = {name: _standing(entries, attacks) for name, attacks in attack_sets.items()}
    return Row(method, variant, budget, size, threat, name, entries, Entry(method, "", tuple(ordered), tuple(missing)), standings)


def declared_threat_model(method: str) -> ThreatModel:
    """What a registered method says that it changes; for rows of which no cell ran."""
    try:
        changes = registry.load("methods", method).changes  # type: ignore[attr-defined]
    except PersbenchError:
        return "unknown"
    levels: dict[frozenset[str], ThreatModel] = {frozenset(): "none", frozenset({"photos"}): "image", frozenset({"model"}): "model"}
    return levels.get(frozenset(changes), "both")


def _standing(entries: Mapping[str, Entry], attacks: Sequence[str]) -> Standing:
    """An attack that is skipped for all subjects does not exist here: it neither counts nor is missing."""
    counted = {a: e for a in attacks if (e := entries.get(a)) is not None and not (e.skipped and not e.scores and not e.failed)}
    by_subject = worst_case({attack: entry.by_subject for attack, entry in counted.items()})
    return Standing(
        tuple(counted),
        tuple(attack for attack in attacks if attack not in entries),
        _interval({subject: [value] for subject, (value, _) in by_subject.items()}),
        by_subject,
    )


def _ranked(rows: Sequence[Row], attack_sets: Mapping[str, tuple[str, ...]]) -> list[Row]:
    found = {row.name: dict(row.standings) for row in rows}
    for name in attack_sets:
        values = {
            row.name: {subject: value for subject, (value, _) in row.standings[name].by_subject.items()}
            for row in rows
            if not row.standings[name].missing and row.method not in BASELINES
        }
        everyone = {subject for held in values.values() for subject in held}  # but those who are void for all
        values = {row: held for row, held in values.items() if held.keys() == everyone}
        overall = ranks(values)
        within: dict[str, Rank] = {}
        for threat in THREATS:
            within |= ranks({row.name: values[row.name] for row in rows if row.name in values and row.threat_model == threat})
        for row in rows:
            standing = row.standings[name]
            found[row.name][name] = replace(standing, rank=overall.get(row.name), rank_within=within.get(row.name))
    return [replace(row, standings=found[row.name]) for row in rows]


def _controls(scores: Sequence[Score], attacks: Sequence[str]) -> dict[str, Control]:
    found = {}
    for attack in attacks:
        cells = {(s.subject, s.seed): s for s in scores if s.attack == attack and s.control is not None}  # methods share them
        by_subject: dict[str, list[float]] = defaultdict(list)
        for (subject, _), each in sorted(cells.items()):
            by_subject[subject].append(each.control or 0.0)
        if by_subject:
            found[attack] = Control(
                attack,
                bootstrap(by_subject),
                _mean(each.floor for each in cells.values()),
                _mean(each.control_alignment for each in cells.values()),
                _mean(each.control_detected for each in cells.values()),
                {subject: statistics.fmean(values) for subject, values in by_subject.items()},
                sum(not each.void for each in cells.values()),
                len(cells),
            )
    return found


def track_sets(track: str) -> Mapping[str, Sequence[str]]:
    """The attack sets of a track; none of one that is not installed."""
    return registry.load("tracks", track)().attack_sets() if track in registry.names("tracks") else {}


def disclaimer(track: str) -> str:
    """What a track says of its numbers; "" for a track that is not installed."""
    return registry.load("tracks", track).disclaimer if track in registry.names("tracks") else ""  # type: ignore[attr-defined]


def read_boards(folder: Path) -> list[Board]:
    """The boards of an output folder. Raises PersbenchError when there are no records."""
    return boards(iter_records(folder), track_sets)


def read_records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All records below an output folder. Raises PersbenchError when there are none."""
    return list(iter_records(folder))


def iter_records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The records below an output folder one by one, in the order of their names. Raises PersbenchError when there are none."""
    paths = sorted((folder / "records").glob("*.json"))
    if not paths:
        raise PersbenchError(f"no records in {folder / 'records'}; run something first: persbench run --method persguard-target")
    for path in paths:
        try:
            record = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise PersbenchError(f"record {path} is not JSON; delete it and run again") from None
        yield path, record
