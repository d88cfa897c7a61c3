"""The photos of the protected subjects and of the bystanders: identities that no training has seen."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from .draw import identity, shot

PROTECTED = {
    "person": "ada boris chen dalia emre fatou goran hana ines jamal kira luis".split(),
    "robot": ["unit-seven", "unit-nine"],
    "monster": ["gruff", "momo"],
}
BYSTANDERS = {
    "person": "nadia omar petra quinn".split(),
    "robot": ["unit-three", "unit-five"],
    "monster": ["bibo", "zaza"],
}
PHOTOS = {"published": 4, "reference": 8, "spare": 4}


def draw(folder: Path) -> None:
    """Write `<subject>/<kind>-<number>.png` and `index.json` for all subjects."""
    index = {}
    for role, names in (("protected", PROTECTED), ("bystander", BYSTANDERS)):
        for noun, subjects in names.items():
            for name in subjects:
                index[name] = {"class": noun, "role": role}
                (folder / name).mkdir(parents=True, exist_ok=True)
                who = identity(noun, f"subject-{name}")
                for kind, count in PHOTOS.items():
                    for number in range(count):
                        pixels = shot(who, f"{kind}-{number}").pixels
                        Image.fromarray(pixels).save(folder / name / f"{kind}-{number}.png", optimize=True)
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")
