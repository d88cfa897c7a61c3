"""Write docs/leaderboard.md and its picture: `python docs/build_leaderboard.py [--add persbench-runs]`.

Every number on the page comes from the records in leaderboard/results/matrix; the words around them stand in this file and in
leaderboard_notes.md. `--add` first takes over the records of the output folder of such a run, and draws its pictures.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from persbench.leaderboard.aggregate import Board, Entry, read_boards, read_records
from persbench.leaderboard.exports import markdown_table, summary
from persbench.leaderboard.terminal import number
from PIL import Image, ImageDraw

from persbench.tracks.avatars import Avatars

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "leaderboard" / "results" / "matrix"
SUBJECTS = ("ada",)
COMMAND = f"persbench run --method all --attack standard --budget standard --subjects {','.join(SUBJECTS)} --bystanders 1"
PURIFIED = ("jpeg+lora", "diffpure+lora")
SHIFTED = ("lora@identifier", "lora@all")

PAGE = """# The standard matrix on `avatars`

{disclaimer}

This page is written by `python docs/build_leaderboard.py` from the records in `leaderboard/results/matrix`, which are those of

```sh
{command}
```

Every protection under every attack of the track's standard set, all image-level methods at the track's standard budget of {budget:g} 8-bit
levels. Subjects: {subjects}, with one bystander. {outcomes} Protecting and personalizing took {hours:.1f} hours of one core.
`persbench leaderboard --output leaderboard/results/matrix --details` shows the same, with where each flag was seen.

**One subject, one seed: the order of rows near each other says nothing.** What was measured on 16 subjects stands in
[avatars.md](avatars.md).

## Worst case over the attacks

{worst}

## Under each attack

Protection: 0 no help, 1 as if the photos had never been seen. *void*: the control did not learn the subject.

{attacks}

## What the attacks make of clean photos

The control of each attack: similarity to the subject with nothing protected, and the floor. It has learned where the control is at
least {margin} above the floor.

{controls}

## Does the known order of things show?

### Perturbations against random noise, under DreamBooth and LoRA

Protection, and how much of it random signs of the same budget do not give.

{noise}

### Purification

Protection after the countermeasure, against a control that went through the same countermeasure.

{purified}

### Gray-box prompts

The adversary trains and prompts with words that the protector did not assume: another identifier, or identifier, class word and
sentence together.

{shifted}

## Pictures

What the adversary gets, one picture for each prompt of the protocol.

![Attacked pictures of all methods](images/leaderboard.png)

"""

DRAWN = ("lora", "dreambooth", *PURIFIED[1:], "weight-merge+lora", *SHIFTED)
SIDE, GAP, LABEL = 48, 8, 160


def sheet(output: Path) -> None:
    """Draw the attacked pictures: methods down, attacks across, the first picture of each prompt."""
    found = {(record["cell"]["method"], record["cell"]["attack"]): record for _, record in read_records(output)}
    methods, prompts, each = sorted({method for method, _ in found}), len(Avatars.protocol.prompts), Avatars.protocol.pictures_per_prompt
    canvas = Image.new("RGB", (LABEL + len(DRAWN) * (prompts * SIDE + GAP), 16 + len(methods) * (SIDE + 2)), "white")
    draw = ImageDraw.Draw(canvas)
    for line, method in enumerate(methods):
        top = 16 + line * (SIDE + 2)
        draw.text((2, top + SIDE // 2 - 6), method, fill="black")
        for column, attack in enumerate(DRAWN):
            left = LABEL + column * (prompts * SIDE + GAP)
            if not line:
                draw.text((left, 2), attack, fill="black")
            folder = output / "store" / "generate" / found[method, attack]["pictures"]["attacked"]
            for number_, path in enumerate(sorted(folder.glob("*.png"))[::each]):
                canvas.paste(Image.open(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left + number_ * SIDE, top))
    canvas.quantize(256).save(DOCS / "images" / "leaderboard.png", optimize=True)


def outcome(entry: Entry | None) -> str:
    """What came of the cells of a method under an attack."""
    if entry is None:
        return "not run"
    if entry.failed:
        return "error"
    if entry.skipped:
        return "skipped"
    return number(entry.protection.mean) if entry.protection else "void"


def protected(board: Board, method: str, attack: str) -> float | None:
    """Mean protection of a method under an attack, if there is one."""
    entry = board.row(method).entries.get(attack)
    return entry.protection.mean if entry and entry.protection else None


def noise_table(board: Board) -> str:
    """Image-level methods against random noise, strongest first."""
    attacks = ("dreambooth", "lora")
    noise = {attack: protected(board, "random-noise", attack) for attack in attacks}
    rows = []
    for row in sorted(board.rows, key=lambda row: protected(board, row.method, attacks[0]) or 0.0, reverse=True):
        if row.threat_model == "image" and row.method != "random-noise":
            line = {
                "method": f"`{row.method}`",
                "levels": number(row.total.means["linf_levels"], 0),
                "psnr": number(row.total.means["psnr"], 1),
            }
            for attack in attacks:
                found, least = protected(board, row.method, attack), noise[attack]
                line[attack] = number(found)
                line[f"{attack} - noise"] = number(found - least if found is not None and least is not None else None)
            rows.append(line)
    return markdown_table(rows)


def changed_table(board: Board, attacks: Sequence[str], methods: Iterable[str]) -> str:
    """Methods under plain LoRA and under attacks derived from it, and the mean of each threat model."""
    rows, groups = [], {}
    for row in board.rows:
        if row.method in methods:
            found = {attack: protected(board, row.method, attack) for attack in ("lora", *attacks)}
            rows.append(
                {"method": f"`{row.method}`", "threat": row.threat_model, **{attack: number(value) for attack, value in found.items()}}
            )
            groups.setdefault(row.threat_model, []).append(found)
    for threat, members in groups.items():
        means = {attack: [each[attack] for each in members if each[attack] is not None] for attack in ("lora", *attacks)}
        rows.append(
            {"method": f"mean of {len(members)}", "threat": threat, **{a: number(fmean(v) if v else None) for a, v in means.items()}}
        )
    return markdown_table(rows)


def page() -> str:
    """The whole page."""
    boards = read_boards(RESULTS)
    if len(boards) != 1:
        raise SystemExit(f"{RESULTS} holds records of {len(boards)} boards; it is for one run")
    board = boards[0].view("standard")
    attacks = board.attack_sets["standard"]
    outcomes: Counter[str] = Counter()
    lines = []
    for row in board.rows:
        found = {attack: outcome(row.entries.get(attack)) for attack in attacks}
        outcomes.update(value if value.isalpha() or " " in value else "a number" for value in found.values())
        lines.append({"method": f"`{row.method}`", "threat": row.threat_model, **found})
    learned = [
        {
            "attack": f"`{attack}`",
            "control": number(control.similarity.mean),
            "floor": number(control.floor),
            "learned": f"{control.learned} of {control.cells} cells",
        }
        for attack, control in board.controls.items()
    ]
    stages = [stage for _, record in read_records(RESULTS) for stage in record.get("stages", {}).values()]
    spent = {stage["key"]: stage["seconds"] for stage in stages}
    return PAGE.format(
        disclaimer=Avatars.disclaimer,
        command=COMMAND,
        budget=Avatars.standard_budget,
        subjects=", ".join(SUBJECTS),
        outcomes=f"{sum(outcomes.values())} cells: " + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()) + ".",
        hours=sum(spent.values()) / 3600,
        worst=markdown_table(summary(board)),
        attacks=markdown_table(lines),
        margin=Avatars.protocol.margin,
        controls=markdown_table(learned),
        noise=noise_table(board),
        purified=changed_table(board, PURIFIED, [row.method for row in board.rows if row.threat_model != "none"]),
        shifted=changed_table(board, SHIFTED, [row.method for row in board.rows if row.method.startswith("persguard-")]),
    ) + (DOCS / "leaderboard_notes.md").read_text("utf-8")


def main() -> None:
    """Take over new records if there are some, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, metavar="OUTPUT", help="output folder of the run whose records are to be taken over")
    given = parser.parse_args()
    if given.add:
        shutil.rmtree(RESULTS, ignore_errors=True)
        shutil.copytree(given.add / "records", RESULTS / "records")
        sheet(given.add)
    (DOCS / "leaderboard.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
