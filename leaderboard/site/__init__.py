"""The leaderboard as a static site: opens from a folder, needs no network, and takes nothing of a record for code.

Templates escape everything; data of charts stands in script elements as JSON without "<". Pages are complete without JavaScript, which
sorts, filters and draws what they hold.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from persbench import registry
from persbench.errors import PersbenchError

from ..aggregate import BASELINES, THREATS, Board, Entry, Gap, Row, Standing, split_attack
from ..exports import paper_lines
from ..flags import FLAGS
from ..reported import Paper
from ..terminal import interval, number, percent
from .gallery import Copier, gallery

LABELS = {"image": "image-level", "model": "model-level", "both": "photos and model", "none": "no protection", "unknown": "not known"}
EVIDENCE = {  # most trusted first
    "measured": "run by whoever publishes this board",
    "verified": "submitted; every metric was recomputed from the pictures, and a random sample of cells run again with the same result",
    "recomputed": "submitted; every metric was recomputed from the pictures",
    "reported": "a paper's number, not measured here; never in the table of measured rows",
}
COSTS = (  # key of the means, label, direction, logarithmic
    ("bystanders", "others keep of their personalization", "right is better", False),
    ("prior_class", "class prompts right", "right is better", False),
    ("lpips", "LPIPS of published photos", "left is better", False),
    ("linf_levels", "largest change of a photo in levels", "left is better", False),
    ("protect_seconds", "seconds to protect", "left is better", True),
    ("peak_mib", "peak memory in MiB", "left is better", True),
)
VOID = "without protection the attack did not learn the subject"
OWN_BASE = "the track's own"
MARK = "assets/site.js"  # a folder that has it is a site, and may be replaced


def slug(text: str) -> str:
    """A file name or anchor for any text; texts that differ have names that differ.

    >>> slug("persguard-target")
    'persguard-target'
    >>> slug("../x") != slug("x"), "/" in slug("../x")
    (True, False)
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("-")


def base_name(base: str) -> str:
    """A base model's folder without where it lies; "" for the track's own."""
    return Path(base).name


def code(text: str) -> Markup:
    """Escaped text whose `parts` between backquotes are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


class Site:
    """Writes the pages of some boards into a folder."""

    def __init__(
        self, folder: Path, boards: Sequence[Board], output: Path, disclaimers: Mapping[str, str], evidence: Mapping[str, str]
    ) -> None:
        self.folder, self.boards, self.disclaimers = folder, boards, disclaimers
        self.marks = evidence
        self.copier = Copier(folder, output)
        cells = sum(len(row.total.scores) + len(row.total.gaps) for board in boards for row in board.rows)
        means = [e.protection for b in boards for r in b.rows for e in r.entries.values() if e.protection]
        means += [s.protection for b in boards for r in b.rows for s in r.standings.values() if s.protection]
        low, high = min([0.0, *(each.low for each in means)]), max([1.0, *(each.high for each in means)])
        self.low, self.high = max(low, -1.0), min(high, 1.5)
        counts = Counter(row.name for board in boards for row in board.rows)
        self.names = {
            (board.key, row.name): slug(row.name if counts[row.name] == 1 else f"{row.name} {board.key}")
            for board in boards
            for row in board.rows
        }
        self.jinja = Environment(
            loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self.jinja.filters["code"] = code
        self.jinja.globals |= {
            "number": number, "percent": percent, "interval": interval, "slug": slug, "base_name": base_name, "threats": LABELS,
            "scale": self.scale, "attack_href": self.attack_href, "order": lambda rank: rank.place if rank else 9999,
            "footer": f"Written by persbench {version('persbench')} on {datetime.now(UTC):%Y-%m-%d} from {cells:,} cells.",
        }  # fmt: skip

    # --- small things that pages share

    def scale(self, value: float) -> float:
        """Where a protection lies on the drawn intervals, in percent."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)

    def href(self, board: Board, row: Row) -> str:
        """The page of a row, from the site's root."""
        return f"methods/{self.names[board.key, row.name]}.html"

    @staticmethod
    def attack_href(attack: str) -> str:
        """The page of an attack, from the site's root."""
        return f"attacks/{slug(attack)}.html"

    def render(self, template: str, path: str, **values: Any) -> None:
        """Write a page."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        text = self.jinja.get_template(f"{template}.html.j2").render(top="../" * path.count("/"), page=path, **values)
        target.write_text(text, "utf-8")

    def evidence(self, row: Row) -> str:
        """Which of `EVIDENCE` a row rests on: that of its least trusted cell."""
        return max((self.marks.get(each.record, "measured") for each in row.total.scores), key=list(EVIDENCE).index, default="measured")

    # --- pages

    def write(self, papers: Sequence[Paper]) -> None:
        """All pages."""
        with as_file(files(__package__) / "assets") as assets:
            shutil.copytree(assets, self.folder / "assets")
        self.index(papers)
        for board in self.boards:
            for row in board.rows:
                self.method(board, row)
        self.attacks()
        raised: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for board in self.boards:
            for row in board.rows:
                for flag in row.flags:
                    raised[flag.name].append((row.name, self.href(board, row)))
        self.render("flags", "flags.html", flags=FLAGS, raised=defaultdict(list, raised))

    def index(self, papers: Sequence[Paper]) -> None:
        """The table of all boards, what protection costs, reported numbers, and what is missing."""
        rows, points = [], []
        for board in self.boards:
            for name in board.attack_sets:
                for row in board.view(name).rows:
                    standing = row.standings[name]
                    sets = [name, "default"] if name == board.attack_set else [name]
                    rows.append(
                        {
                            "board": board, "row": row, "standing": standing, "sets": sets,
                            "href": self.href(board, row), "base": base_name(board.base) or OWN_BASE, "weakest": weakest(standing),
                            "worst": row.entries.get(standing.weakest, row.total), "evidence": self.evidence(row),
                        }
                    )  # fmt: skip
                    points.append(self.point(rows[-1]))
        axes = [
            {"key": key, "label": label, "better": better, "log": logarithmic}
            for key, label, better, logarithmic in COSTS
            if any(point["costs"][key] is not None for point in points)
        ]
        self.render(
            "index",
            "index.html",
            rows=rows,
            boards=self.boards,
            filters=self.filters(),
            disclaimers=list(dict.fromkeys(self.disclaimers.get(board.track, "") for board in self.boards)),
            tradeoff={"axes": axes, "threats": LABELS, "points": points},
            threat_texts=THREATS,
            evidence_texts=EVIDENCE,
            papers=[(paper, paper_lines(paper)) for paper in papers],
            gaps=grouped([row for board in self.boards for row in board.rows]),
        )

    def filters(self) -> list[tuple[str, str, list[tuple[str, str, bool]]]]:
        """Key, label and options (value, text, chosen) of each filter; those that have nothing to choose are left out."""
        first = self.boards[0]
        tracks = dict.fromkeys(board.track for board in self.boards)
        bases = dict.fromkeys(base_name(board.base) or OWN_BASE for board in self.boards)
        protocols = dict.fromkeys(board.key for board in self.boards)
        sets = dict.fromkeys(name for board in self.boards for name in board.attack_sets)
        threats = dict.fromkeys(row.threat_model for board in self.boards for row in board.rows)

        def named(name: str) -> str:
            return f"{name} ({len(first.attack_sets[name])} attacks)" if name in first.attack_sets and len(self.boards) == 1 else name

        found = [("track", "Track", [(track, track, track == first.track) for track in tracks])]
        found.append(("base", "Base model", [(base, base, base == (base_name(first.base) or OWN_BASE)) for base in bases]))
        if len(protocols) > len(tracks) * len(bases):
            found.append(("protocol", "Protocol", [("", "all", False), *((key, key, key == first.key) for key in protocols)]))
        found.append(
            (
                "set",
                "Attack set",
                [("default", f"default: {named(first.attack_set)}" if len(self.boards) == 1 else "default of the track", True)],
            )
        )
        found[-1][2].extend((name, named(name), False) for name in sets)
        found.append(("threat", "Threat model", [("", "all", True), *((key, LABELS[key], False) for key in threats)]))
        return found

    def point(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table as a point of the trade-off plot."""
        row, found = entry["row"], entry["standing"].protection
        means = row.total.means | {"bystanders": row.total.bystanders.mean if row.total.bystanders else None}
        costs = {key: means[key] if not (logarithmic and not means[key]) else None for key, _, _, logarithmic in COSTS}
        filtered = {"track": entry["board"].track, "base": entry["base"], "protocol": entry["board"].key, "threat": row.threat_model}
        return {
            "name": row.name, "href": entry["href"], "threat": row.threat_model, "costs": costs, "value": found.mean if found else None,
            "low": found.low if found else None, "high": found.high if found else None, "row": filtered | {"set": "|".join(entry["sets"])},
        }  # fmt: skip

    def method(self, board: Board, row: Row) -> None:
        """The page of a row."""
        standing = board.standing(row)
        galleries, left_out = gallery(row, self.copier, board.track)
        others = [
            (f"{other.name} on {b.track}", self.href(b, other))
            for b in self.boards
            for other in b.rows
            if other.method == row.method and (b.key, other.name) != (board.key, row.name)
        ]
        summary, card = described("methods", row.method)
        bars = bar_chart(row.entries.items())
        self.render(
            "method",
            self.href(board, row),
            board=board,
            row=row,
            standing=standing,
            weakest_count=weakest_count(standing),
            evidence=self.evidence(row),
            summary=summary,
            card=card,
            disclaimers=[self.disclaimers.get(board.track, "")],
            bars=bars,
            shares=share_chart(row.entries, [point["name"] for point in bars["points"]]),
            galleries=galleries,
            left_out=left_out,
            gaps=grouped([row]),
            others=others,
        )

    def attacks(self) -> None:
        """The list of attacks, and a page for each."""
        entries = []
        every = dict.fromkeys(attack for board in self.boards for attack in board.attack_sets["all"])
        for board in self.boards:
            for attack in board.attack_sets["all"]:
                protecting = [row for row in board.rows if row.method not in BASELINES]
                means = [e.protection.mean for row in protecting if (e := row.entries.get(attack)) and e.protection]
                entries.append(
                    {
                        "attack": attack, "href": self.attack_href(attack), "track": board.track, "control": board.controls.get(attack),
                        "sets": [name for name, attacks in board.attack_sets.items() if attack in attacks], "methods": len(means),
                        "mean": sum(means) / len(means) if means else None,
                        "weakest": sum(row.standings["all"].weakest == attack for row in protecting),
                    }
                )  # fmt: skip
        self.render("attacks", "attacks.html", attacks=entries)
        for attack in every:
            sections = []
            for board in self.boards:
                rows = [(row, row.entries[attack], self.href(board, row)) for row in board.rows if attack in row.entries]
                if rows:
                    drawn = bar_chart(((row.name, entry) for row, entry, _ in rows if row.method not in BASELINES), lowest_first=False)
                    control = board.controls.get(attack)
                    sections.append(
                        {
                            "board": board,
                            "rows": rows,
                            "bars": drawn,
                            "control": control,
                            "disclaimer": self.disclaimers.get(board.track, ""),
                        }
                    )
            self.render("attack", self.attack_href(attack), attack=attack, parts=attack_parts(attack), sections=sections)


def weakest_count(standing: Standing) -> int:
    """For how many subjects the weakest attack is the worst case."""
    return sum(attack == standing.weakest for _, attack in standing.by_subject.values())


def weakest(standing: Standing) -> str:
    """The weakest attack and for how many subjects it is the worst case: "jpeg+lora (9 of 16)"."""
    several = len(standing.attacks) > 1 and standing.by_subject
    return standing.weakest + (f" ({weakest_count(standing)} of {len(standing.by_subject)})" if several else "")


def grouped(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Cells without a score, those of one attack and reason together."""
    found: dict[tuple[str, str, str], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for row in rows:
        voids = [Gap("void", s.method, s.attack, s.subject, s.seed, VOID) for s in row.total.scores if s.void]
        for gap in (*row.total.skipped, *row.total.failed, *voids):
            methods, subjects = found[gap.status, gap.attack, gap.reason]
            methods.append(row.name)
            subjects.append(gap.subject)
    return [
        {
            "status": status,
            "attack": attack,
            "reason": reason,
            "methods": list(dict.fromkeys(methods)),
            "subjects": list(dict.fromkeys(subjects)),
        }
        for (status, attack, reason), (methods, subjects) in found.items()
    ]


def bar_chart(entries: Iterable[tuple[str, Entry]], lowest_first: bool = True) -> dict[str, Any]:
    """Protections with intervals as bars, sorted; with `lowest_first` the lowest is marked."""
    known = [(name, entry.protection) for name, entry in entries if entry.protection]
    known.sort(key=lambda each: each[1].mean if lowest_first else -each[1].mean)
    points = [
        {"name": name, "value": found.mean, "low": found.low, "high": found.high, "weakest": lowest_first and place == 0 and len(known) > 1}
        for place, (name, found) in enumerate(known)
    ]
    return {"label": "protection", "points": points}


def share_chart(entries: Mapping[str, Entry], order: Sequence[str]) -> dict[str, Any]:
    """What the adversary's pictures show, as shares that add up to one."""
    labels, subject, other, nobody = [], [], [], []
    for attack in order:
        entry = entries[attack]
        shown, seen = entry.means["shown"], entry.means["detected"]
        if shown is not None and seen is not None:
            labels.append(attack)
            subject.append(shown)
            other.append(max(0.0, seen - shown))
            nobody.append(max(0.0, 1 - max(seen, shown)))
    parts = [("the subject", subject), ("somebody else of the class", other), ("nobody of the class", nobody)]
    return {"label": "share of pictures", "labels": labels, "parts": [{"name": name, "values": values} for name, values in parts]}


def described(kind: str, name: str) -> tuple[str, list[tuple[str, str]]]:
    """First line and card of a plug-in, nothing for one that is not installed or does not import."""
    if name not in registry.names(kind):
        return "", []
    try:
        card = asdict(registry.load(kind, name).card)  # type: ignore[attr-defined]
    except PersbenchError:
        return "", []
    return registry.summary(kind, name), [(key.capitalize(), str(value)) for key, value in card.items() if value]


def attack_parts(attack: str) -> list[tuple[str, str, str]]:
    """What an attack consists of: kind, name with options, and what it does."""
    parts, shift = split_attack(attack)
    kinds = {"countermeasures": "Countermeasure", "tampers": "Tampering", "personalizers": "Personalizer", "prompt_shifts": "Prompt shift"}
    found = []
    for index, part in enumerate([*parts, *([shift] if shift else [])]):
        name = part.partition("(")[0]
        wanted = (
            ["prompt_shifts"]
            if shift and index == len(parts)
            else ["personalizers"]
            if index == len(parts) - 1
            else ["countermeasures", "tampers"]
        )
        kind = next((each for each in wanted if name in registry.names(each)), wanted[0])
        text = registry.summary(kind, name) if name in registry.names(kind) else ""
        found.append((kinds[kind], part, text))
    return found


def write_site(
    folder: Path,
    boards: Sequence[Board],
    output: Path,
    disclaimers: Mapping[str, str],
    papers: Sequence[Paper] = (),
    evidence: Mapping[str, str] | None = None,
) -> Path:
    """Write the site of some boards into a folder and return its first page.

    `output`: the folder of the runs, with their records and the store of their pictures. `disclaimers`: by track. `evidence`: "recomputed"
    or "verified" by the names of submitted records; the others were measured here. An older site in the folder is replaced. Raises
    PersbenchError when the folder holds anything else.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file())):
        raise PersbenchError(f"{folder} holds something other than a site; choose another folder with --site")
    made = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        Site(made, boards, output, disclaimers, evidence or {}).write(papers)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    except OSError as error:
        raise PersbenchError(f"cannot write a site to {folder}: {error.strerror or error}; choose another folder with --site") from error
    return folder / "index.html"
