"""Write docs/avatars.md and its pictures: `python docs/build_avatars.py [--add persbench-runs [--former]]`.

Every number on the page comes from the records in leaderboard/results/avatars and from the track's report; the words around them stand
in this file and in avatars_notes.md. `--add` first takes over the records of an output folder, and draws the pictures of the methods
that it has.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from persbench.leaderboard.aggregate import Score, line, read_records, score
from persbench.leaderboard.terminal import interval, number, percent
from PIL import Image, ImageDraw

from persbench import pictures, registry
from persbench.pictures import to_levels
from persbench.pipeline.spec import Cell
from persbench.provenance import source_digest
from persbench.tracks import avatars
from persbench.tracks.avatars import Avatars

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "leaderboard" / "results" / "avatars"
METHODS = ("none", "random-noise", "persguard-target", "persguard-erasure", "persguard-pattern")
ABLATIONS = ("behaviour_weight", "prior_weight", "retention_weight", "retention")
SIDE, GAP, LABEL = 64, 3, 18

INTRO = """# The embedded track `avatars`: what was measured

{disclaimer}

This page is written by `python docs/build_avatars.py` from the records in `leaderboard/results/avatars`, which are those of

```sh
{commands}
```

`persbench leaderboard --output leaderboard/results/avatars` shows them too.

## The track itself

Measured by `python -m persbench.tracks.avatars.build --stage report` on pictures that no training has seen.

{report}
"""

MAIN = """## PersGuard under LoRA

Protection: 0 no help, 1 as if the photos had never been seen; mean and 95% interval (bootstrap,
clustered by subject). *Bystanders keep* is the share of their undefended personalization that others have with the released model.
*Class prompts right* is how often "a photo of a person", of a robot, ... still shows that class. *Leak where seen* takes the pictures alone
in which the text-image model sees somebody of the subject's class, as the judges gave it.

{table}
"""

CONTROLS = """## What personalizers learn without protection

A personalizer has learned a subject where its control is at least {margin} above the floor; elsewhere its cells are void. In brackets: the
lowest of all subjects, for the floor the highest. One seed.

{table}
"""

BUDGETS = """## Budgets of image-level methods

Protection when every method may change photos by at most so many 8-bit levels (`--budget`), on the same subjects in a line. A void cell
counts nowhere.

{table}
"""

TOGETHER = """## One released model that protects several subjects

`--together`: so many subjects have one release between them. The first line of a method is that of the main table, on the same subjects.

{table}
"""

SHIFTED = """## Gray-box prompts

The adversary trains and prompts with words that the protector did not assume: another identifier (`lora@identifier`), or identifier,
class word and sentence together (`lora@all`). Protection; [leaderboard.md](leaderboard.md) has the same for all variants on ada.

{table}
"""

PICTURES = """## Pictures

Each row is a subject: a published photo and a held-out reference, what the adversary gets without protection (control) and with it, one
picture for each prompt of the protocol, and what a bystander's adversary gets with the released model and with the base model, two each.

{grids}
"""


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def report_table() -> str:
    """The report of the track against what was asked for."""
    from persbench.tracks.avatars.build.report import WANTED

    found = json.loads((Path(avatars.__file__).parent / "report.json").read_text("utf-8"))
    rows = [["measure", "wanted", "measured", "met"]]
    for name, wanted in WANTED.items():
        if name in found:
            value = found[name]
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            rows.append([name, f">= {wanted:g}", shown, "yes" if found["met"][name] else "**no**"])
    return markdown(rows)


def main_table(groups: dict[tuple[str, str], list[Score]]) -> str:
    """One line a method, standard options."""
    rows = [
        [
            "method",
            "subjects",
            "protection",
            "still shown",
            "class seen",
            "bystanders keep",
            "leak",
            "leak where seen",
            "control",
            "floor",
            "alignment",
            "class prompts right",
            "seconds",
        ]
    ]
    for method in METHODS:
        scores = groups.get((method, ""))
        if scores:
            total = line(method, "lora", scores)
            means = ("leak", "leak_seen", "control", "floor", "alignment", "prior_class")
            rows.append(
                [
                    f"`{method}`",
                    str(len({each.subject for each in scores})),
                    interval(total.protection),
                    percent(total.means["shown"]),
                    percent(total.means["detected"]),
                    interval(total.bystanders),
                    *(number(total.means[name]) for name in means),
                    number(total.means["protect_seconds"], 0),
                ]
            )
    return markdown(rows)


def ablation_table(groups: dict[tuple[str, str], list[Score]]) -> str:
    """Variants of the PersGuard methods, beside the standard one on the same subjects."""
    rows = [["method", "changed", "subjects", "protection", "still shown", "bystanders keep", "class prompts right"]]
    for (method, variant), scores in sorted(groups.items()):
        if not variant or not method.startswith("persguard"):
            continue
        subjects = {each.subject for each in scores}
        standard = [each for each in groups.get((method, ""), []) if each.subject in subjects]
        for label, found in (("nothing", standard), (variant.replace(f"{method}.", ""), scores)):
            entry = line(method, "lora", found) if found else None
            row = [f"`{method}`", label, str(len(found))]
            if entry and row not in [r[:3] for r in rows]:
                rows.append(
                    [
                        *row,
                        interval(entry.protection),
                        percent(entry.means["shown"]),
                        interval(entry.bystanders),
                        number(entry.means["prior_class"]),
                    ]
                )
    return markdown(rows) if len(rows) > 1 else ""


def controls_table(scores: Iterable[Score]) -> str:
    """One line a personalizer: how many subjects it learns."""
    found: dict[str, dict[str, Score]] = defaultdict(dict)
    for each in scores:
        if each.attack in registry.names("personalizers") and each.control is not None and each.floor is not None:
            found[each.attack][each.subject] = each
    rows = [["personalizer", "subjects", "learned", "control", "floor"]]
    for attack, subjects in sorted(found.items()):
        controls, floors = ([getattr(each, name) for each in subjects.values()] for name in ("control", "floor"))
        ends = f"{number(fmean(controls))} [{number(min(controls))}]", f"{number(fmean(floors))} [{number(max(floors))}]"
        rows.append([f"`{attack}`", str(len(subjects)), str(sum(not each.void for each in subjects.values())), *ends])
    return markdown(rows)


def budget_table(found: Mapping[tuple[str, str], Mapping[float, list[Score]]]) -> str:
    """One line a method and attack, one column a budget."""
    budgets = sorted({budget for scores in found.values() for budget in scores})
    rows = [["method", "attack", "subjects", *(f"{budget:g}" for budget in budgets)]]
    for (method, attack), scores in sorted(found.items()):
        names = sorted({each.subject for held in scores.values() for each in held})
        cells = [interval(line(method, attack, scores[budget]).protection) if budget in scores else "" for budget in budgets]
        rows.append([f"`{method}`", f"`{attack}`", ", ".join(names), *cells])
    return markdown(rows)


def together_table(found: Mapping[tuple[str, int], list[Score]], alone: Mapping[tuple[str, str], list[Score]]) -> str:
    """One line a method and number of subjects that a release protects."""
    rows = [["method", "together", "subjects", "protection", "still shown", "bystanders keep", "class prompts right", "seconds"]]
    methods = sorted({method for method, _ in found})
    for method in methods:
        sizes = {size: scores for (name, size), scores in found.items() if name == method}
        subjects = {each.subject for scores in sizes.values() for each in scores}
        sizes[1] = [each for each in alone.get((method, ""), []) if each.subject in subjects]
        for size, scores in sorted(sizes.items()):
            entry = line(method, "lora", scores)
            row = [f"`{method}`", str(size), str(len(scores)), interval(entry.protection), percent(entry.means["shown"])]
            rows.append([*row, interval(entry.bystanders), number(entry.means["prior_class"]), number(entry.means["protect_seconds"], 0)])
    return markdown(rows)


def shifted_table(found: Mapping[str, Mapping[str, list[Score]]], standard: Mapping[tuple[str, str], list[Score]]) -> str:
    """One line a method, one column a prompt shift, on the same subjects."""
    attacks = ("lora", "lora@identifier", "lora@all")
    rows = [["method", "subjects", *(f"`{attack}`" for attack in attacks)]]
    for method, by_attack in sorted(found.items()):
        names = {each.subject for scores in by_attack.values() for each in scores}
        known = {"lora": [each for each in standard.get((method, ""), []) if each.subject in names], **by_attack}
        rows.append([f"`{method}`", ", ".join(sorted(names)), *(interval(line(method, a, known[a]).protection) for a in attacks)])
    return markdown(rows)


def gray_box(cell: Cell) -> bool:
    """Whether a cell is one of those that show what the protector's assumptions are worth; they watch no bystanders."""
    return cell.method.startswith("persguard") and ("@" in cell.attack or cell.method.endswith("-universal"))


def present(record: Mapping[str, Any], code: bool = True) -> bool:
    """Whether the method's options, and its code if that counts, are still what they were when the record was made."""
    cell = Cell.from_dict(record["cell"])
    was = record["configs"].get("protect", {}).get("method")
    if was is None:
        return True
    options = {**Avatars.protocol.options.get(cell.method, {}), **cell.options_of(cell.method)}
    method = registry.configure(cell.method, registry.load("methods", cell.method), options)
    same = not code or was["source"] == source_digest(type(method))
    return bool(same and was["config"] == json.loads(json.dumps(vars(method.config))))


def grid(records: Mapping[str, Mapping[str, Any]], store: Path, path: Path) -> None:
    """The pictures of a method, by subject: subjects down, origins across. Rows of subjects that have no record now stay as they are."""
    track = Avatars()
    everyone = track.subject_lists()["all"]

    def drawn(key: str, which: slice) -> torch.Tensor:
        return pictures.read(sorted((store / "generate" / key).glob("*.png"))[which])

    heads = [("photo", 1), ("ref.", 1), ("control", 4), ("protected", 4), ("bystander", 2), ("its control", 2)]
    size = 70 + sum(count * SIDE + 4 * GAP for _, count in heads), LABEL + len(everyone) * (SIDE + GAP)
    if path.exists():
        canvas = Image.open(path).convert("RGB")
    else:
        canvas = Image.new("RGB", size, "white")
        draw, left = ImageDraw.Draw(canvas), 66
        for head, count in heads:
            draw.text((left, 3), head, fill="black")
            left += count * SIDE + 4 * GAP
        for line_, name in enumerate(everyone):
            draw.text((2, LABEL + line_ * (SIDE + GAP) + SIDE // 2 - 6), name[:10], fill="black")
            draw.text((66, LABEL + line_ * (SIDE + GAP) + SIDE // 2 - 6), "not measured yet", fill="grey")
    for name, record in records.items():
        subject, sets = track.subject(name), record["pictures"]
        label = next((key.rsplit(":", 1)[0] for key in sets if key.startswith("bystander:")), "")
        row = [pictures.read(subject.published[:1]), pictures.read(subject.references[:1])]
        row += [drawn(sets[kind], slice(None, None, 4)) for kind in ("control", "attacked")]
        row += [drawn(sets[f"{label}:{kind}"], slice(4, None, 8)) for kind in ("attacked", "control")] if label else []
        top, left = LABEL + everyone.index(name) * (SIDE + GAP), 66
        canvas.paste("white", (left, top, size[0], top + SIDE))
        for (_, count), shown in zip(heads, row, strict=False):
            for i, levels in enumerate(to_levels(shown).permute(0, 2, 3, 1).numpy()):
                canvas.paste(Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left + i * SIDE, top))
            left += count * SIDE + 4 * GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(256).save(path, optimize=True)


def published(record: Mapping[str, Any]) -> bool:
    """Whether a record belongs on the page: the standard protocol, with nothing changed but what an ablation changes."""
    cell = Cell.from_dict(record["cell"])
    ablated = all(plugin == cell.method and key in ABLATIONS for plugin, pairs in cell.options for key, _ in pairs)
    people = (None,) if "model" in registry.load("methods", cell.method).changes else (None, 0)  # what leaves the model alone harms none
    people = (*people, 1) if cell.group else people  # what several cost bystanders shows on one for each of them
    people = (0,) if gray_box(cell) else people
    plain = cell.bystanders in people and cell.seed == 0 and not cell.base
    standard = json.loads(json.dumps(asdict(Avatars.protocol)))
    plain = plain and all(record["protocol"][name] == value for name, value in standard.items() if name != "options")
    plain = plain and "(" not in cell.attack
    return plain and cell.track == "avatars" and record.get("status", "ok") == "ok" and ablated


def add(output: Path, former: bool) -> None:
    """Take over the records of an output folder, those of former code too if told, and draw their pictures."""
    grids: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    (RESULTS / "records").mkdir(parents=True, exist_ok=True)
    for path, record in read_records(output):
        if published(record) and present(record, code=not former):
            shutil.copy(path, RESULTS / "records" / path.name)
            cell = Cell.from_dict(record["cell"])
            if cell.method in METHODS[1:] and not (cell.options or cell.group) and cell.budget is None and cell.attack == "lora":
                grids[cell.method][cell.subject] = record
    for method, found in grids.items():
        grid(found, output / "store", DOCS / "images" / f"avatars-{method}.png")


def commands(cells: Sequence[Cell]) -> str:
    """The runs that have these cells, and no others."""
    everyone = set(Avatars().subject_lists()["all"])
    subjects: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for cell in cells:
        words = [f"-o {key}={value}" for _, pairs in cell.options for key, value in pairs]
        words += [f"--{name} {value:g}" for name in ("budget", "bystanders") if (value := getattr(cell, name)) is not None]
        words += [f"--together {len(cell.group)}"] if cell.group else []
        subjects[cell.method, cell.attack, " ".join(words)].add(cell.subject)
    attacks: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (method, attack, words), names in sorted(subjects.items()):
        attacks[method, words, "all" if names == everyone else ",".join(sorted(names))].append(attack)
    methods: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for (method, words, names), found in attacks.items():
        methods[words, names, *found].append(method)
    return "\n".join(
        " ".join(
            ["persbench run", *(f"--method {m}" for m in held), *(f"--attack {a}" for a in found), f"--subjects {names}", words]
        ).strip()
        for (words, names, *found), held in methods.items()
    )


def page() -> str:
    """The page, from the records that are kept."""
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    former: dict[str, int] = defaultdict(int)
    budgets: dict[tuple[str, str], dict[float, list[Score]]] = defaultdict(lambda: defaultdict(list))
    together: dict[tuple[str, int], list[Score]] = defaultdict(list)
    shifts: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    scores = []
    cells = []
    for _, record in read_records(RESULTS):
        scores.append(found := score(record))
        cells.append(cell := Cell.from_dict(record["cell"]))
        if cell.group:
            together[found.method, len(cell.group)].append(found)
        elif (budget := cell.budget) is not None:
            budgets[found.method, found.attack][budget].append(found)
        elif gray_box(cell):
            shifts[found.method][found.attack].append(found)
        elif found.attack == "lora":
            groups[found.method, found.variant].append(found)
            former[found.method] += not present(record)
    changed = [f"{number} of `{method}`" for method, number in former.items() if number]
    main_part = MAIN.format(table=main_table(groups))
    if changed:
        main_part += f"\nRecords made with code or options that have changed since: {', '.join(changed)}.\n"
    parts = [INTRO.format(disclaimer=Avatars.disclaimer, commands=commands(cells), report=report_table()), main_part]
    ablations = ablation_table(groups)
    if ablations:
        parts.append(f"## Each term of PersGuard left out, and the other reading of retention\n\n{ablations}\n")
    parts.append(CONTROLS.format(margin=Avatars.protocol.margin, table=controls_table(scores)))
    if budgets:
        parts.append(BUDGETS.format(table=budget_table(budgets)))
    if shifts:
        parts.append(SHIFTED.format(table=shifted_table(shifts, groups)))
    if together:
        parts.append(TOGETHER.format(table=together_table(together, groups)))
    drawn = [method for method in METHODS if (DOCS / "images" / f"avatars-{method}.png").exists()]
    if drawn:
        parts.append(PICTURES.format(grids="\n\n".join(f"### `{m}`\n\n![Pictures of {m}](images/avatars-{m}.png)" for m in drawn)))
    notes = DOCS / "avatars_notes.md"
    parts.append(notes.read_text("utf-8"))
    return "\n".join(parts)


def main() -> None:
    """Take over new records if there are some, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, metavar="OUTPUT", help="output folder of runs whose records are to be taken over")
    parser.add_argument("--former", action="store_true", help="also those of former code with the same options; the page says how many")
    given = parser.parse_args()
    if given.add:
        add(given.add, given.former)
    (DOCS / "avatars.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
