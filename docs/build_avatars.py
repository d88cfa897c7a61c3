"""Write docs/avatars.md and its pictures from records: `python docs/build_avatars.py --output persbench-runs`.

Every number on the page comes from the records and from the track's report; the words around them stand in this file.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from persbench.leaderboard.aggregate import Score, line, read_records, score
from persbench.leaderboard.terminal import interval, number, percent
from PIL import Image, ImageDraw

from persbench import pictures
from persbench.pictures import to_levels
from persbench.tracks import avatars
from persbench.tracks.avatars import Avatars

DOCS = Path(__file__).parent
METHODS = ("none", "random-noise", "persguard-target", "persguard-erasure", "persguard-pattern")
TERMS = ("behaviour_weight", "prior_weight", "retention_weight")
SIDE, GAP, LABEL = 96, 4, 18

INTRO = """# The embedded track `avatars`: what was measured

{disclaimer}

This page is written by `python docs/build_avatars.py --output FOLDER` from the records of

```sh
{commands}
```

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

PICTURES = """## Pictures

Each row: two published photos, two held-out references, then two of the sixteen pictures that the adversary gets: without
protection (control), and with each method. The last two columns are a bystander's, personalized with the target variant's model and
with the base model.

![Pictures of all subjects](images/avatars-subjects.png)
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


def page_pictures(records: list[dict[str, Any]], store: Path, path: Path) -> None:
    """The grid of pictures: subjects down, origins across."""
    track = Avatars()
    by_subject: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        if not record["cell"]["options"]:
            by_subject[record["cell"]["subject"]][record["cell"]["method"]] = record

    def two(key: str) -> torch.Tensor:
        return pictures.read(sorted((store / "generate" / key).glob("*.png"))[1::4][:2])

    shown = [method for method in METHODS[1:] if any(method in found for found in by_subject.values())]
    rows, heads = [], ["published", "reference", "control", *shown, "bystander", "its control"]
    for name in track.subject_lists()["all"]:
        found = by_subject.get(name, {})
        subject = track.subject(name)
        if "persguard-target" not in found:
            continue
        row = [pictures.read(subject.published[:2]), pictures.read(subject.references[:2])]
        row.append(two(found["persguard-target"]["pictures"]["control"]))
        blank = torch.ones(2, 3, 64, 64)
        row += [two(found[method]["pictures"]["attacked"]) if method in found else blank for method in shown]
        watched = found["persguard-target"]["pictures"]
        label = next(key.rsplit(":", 1)[0] for key in watched if key.startswith("bystander:"))
        row += [two(watched[f"{label}:attacked"]), two(watched[f"{label}:control"])]
        rows.append((name, row))
    width = GAP + len(heads) * (2 * SIDE + 2 * GAP) + 60
    canvas = Image.new("RGB", (width, LABEL + len(rows) * (SIDE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for x, head in enumerate(heads):
        draw.text((64 + x * (2 * SIDE + 2 * GAP), 3), head, fill="black")
    for y, (name, row) in enumerate(rows):
        top = LABEL + y * (SIDE + GAP)
        draw.text((2, top + SIDE // 2), name[:10], fill="black")
        for x, pair in enumerate(row):
            for i, levels in enumerate(to_levels(pair).permute(0, 2, 3, 1).numpy()):
                picture = Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                canvas.paste(picture, (60 + x * (2 * SIDE + 2 * GAP) + i * (SIDE + 1), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(128).save(path, optimize=True)


def main() -> None:
    """Read the records, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    records = [record for _, record in read_records(output) if record.get("status", "ok") == "ok" and record["cell"]["attack"] == "lora"]
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for record in records:
        found = score(record)
        if record["cell"]["bystanders"] is None and record["cell"]["budget"] is None and found.attack == "lora":
            groups[found.method, found.variant].append(found)
    everyone = set(Avatars().subject_lists()["all"])
    measured = {m: {found.subject for found in groups[m, ""]} for m in METHODS if (m, "") in groups}
    commands = "\n".join(
        f"persbench run --method {m} --attack lora --subjects {'all' if names == everyone else ','.join(sorted(names))}"
        for m, names in measured.items()
    )
    ablations = ablation_table(groups)
    parts = [
        INTRO.format(disclaimer=Avatars.disclaimer, commands=commands, report=report_table()),
        MAIN.format(table=main_table(groups)),
        PICTURES,
    ]
    if ablations:
        parts.insert(2, f"## Each term of PersGuard left out, and other options\n\n{ablations}\n")
    notes = DOCS / "avatars_notes.md"
    if notes.exists():
        parts.append(notes.read_text("utf-8"))
    (DOCS / "avatars.md").write_text("\n".join(parts), "utf-8")
    page_pictures(records, output / "store", DOCS / "images" / "avatars-subjects.png")


if __name__ == "__main__":
    main()
