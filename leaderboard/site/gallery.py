"""Pictures of the site: chosen from the store, checked, made small, and copied once each.

Names and keys come from records, so they are not trusted: a key must be one, and a file must lie below the store.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from persbench import pictures, registry
from persbench.errors import PersbenchError
from persbench.pipeline.store import Store, existing_store

from ..aggregate import Row, Score

SUBJECTS, ATTACKS, EACH = 2, 6, 2  # on a page, of each subject, in a cell
PICTURES, SIDE = 6000, 256  # files on a site; pixels a side
AMPLIFIED = 8  # fixed, so that perturbations of two methods can be compared by eye
_KEY, _NAME = re.compile(r"[0-9a-f]{40}"), re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Picture:
    """A picture on a page: where it lies from the site's root, and what it shows."""

    src: str
    alt: str


@dataclass(frozen=True)
class Table:
    """Pictures in rows under headings; None where the store kept none."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[Picture, ...] | None, ...]], ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a subject."""

    subject: str
    tables: tuple[Table, ...]


@dataclass
class Copier:
    """Copies pictures of the store of some runs into a site, equal ones once."""

    site: Path
    output: Path
    done: set[str] = field(default_factory=set)

    @cached_property
    def store(self) -> Store | None:
        """Where the pictures are."""
        return existing_store(self.output)

    def add(self, picture: torch.Tensor, alt: str) -> Picture | None:
        """A picture (3, H, W) in [0, 1] as a file of the site; None when the site holds as many as it may."""
        image = Image.fromarray(pictures.to_levels(picture).permute(1, 2, 0).numpy())
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=92)
        name = hashlib.sha256(buffer.getvalue()).hexdigest()[:20] + ".webp"
        if name not in self.done:
            if len(self.done) >= PICTURES:
                return None
            self.done.add(name)
            (self.site / "pictures").mkdir(exist_ok=True)
            (self.site / "pictures" / name).write_bytes(buffer.getvalue())
        return Picture(f"pictures/{name}", alt)

    def cell(self, found: torch.Tensor | None, alt: str) -> tuple[Picture, ...] | None:
        """Some pictures (N, 3, H, W), numbered in their texts."""
        if found is None:
            return None
        made = [self.add(each, f"{alt}, {number} of {len(found)}") for number, each in enumerate(found, 1)]
        return tuple(each for each in made if each) or None

    def read(self, stage: str, key: object, pattern: str = "*.png") -> torch.Tensor | None:
        """A few pictures of an artefact, from the start and the middle; None where it is gone, damaged, or no artefact."""
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            return None
        if self.store is None:
            return None
        root, folder = self.store.root.resolve(), self.store.fetched(stage, key)
        files = sorted(path for path in folder.glob(pattern) if path.resolve().is_relative_to(root))
        try:
            return pictures.read(_few(files)) if files else None
        except PersbenchError:
            return None


def _few(files: Sequence[Path]) -> Sequence[Path]:
    return files[:: max(1, len(files) // EACH)][:EACH]


def _published(track: str, subject: str, size: int) -> torch.Tensor | None:
    try:
        return pictures.read(_few(registry.load("tracks", track)().subject(subject).published), size)
    except PersbenchError:
        return None


def gallery(row: Row, copier: Copier, track: str) -> tuple[list[Gallery], str]:
    """Pictures of a row: of a few subjects under the attacks with the least protection; and a note of what was left out."""
    attacks = sorted(row.entries, key=lambda attack: entry.mean if (entry := row.entries[attack].protection) else 9.0)[:ATTACKS]
    cells = {(each.subject, each.attack): each for each in reversed(row.total.scores)}  # the first seed stands
    subjects = list(dict.fromkeys(each.subject for each in row.total.scores))
    found = []
    for subject in subjects[:SUBJECTS]:
        mine = [cells[subject, attack] for attack in attacks if (subject, attack) in cells]
        sets = {label: [copier.read("generate", each.pictures.get(label)) for each in mine] for label in ("control", "attacked")}
        shown = [each for each in (*sets["attacked"], *sets["control"]) if each is not None]
        if not shown:
            continue
        rows = tuple(
            (
                text,
                tuple(copier.cell(each, f"{subject}, {text} under {score.attack}") for each, score in zip(sets[label], mine, strict=True)),
            )
            for label, text in (("control", "without protection"), ("attacked", f"with {row.name}"))
        )
        tables = [Table(f"What the adversary gets of {subject}", tuple(each.attack for each in mine), rows)]
        photos = _photos(row, mine[0], subject, shown[0].shape[-1], copier, track)
        found.append(Gallery(subject, (*photos, *tables)))
    left = []
    if len(subjects) > len(found):
        left.append(f"{len(found)} of {len(subjects)} subjects")
    if len(row.entries) > len(attacks):
        left.append(f"{len(attacks)} of {len(row.entries)} attacks")
    return found, f"Shown are {' and '.join(left)}." if left else ""


def _photos(row: Row, cell: Score, subject: str, size: int, copier: Copier, track: str) -> tuple[Table, ...]:
    """Published photos before and after the method, and the difference, amplified around grey."""
    before = _published(track, subject, size)
    if before is None:
        return ()
    changed = row.threat_model in ("image", "both") and _NAME.fullmatch(subject)
    heads = ["original photos" if changed else "published photos"]
    cells = [copier.cell(before, f"{subject}, photo before protection" if changed else f"{subject}, photo as published")]
    if changed:
        record = json.loads((copier.output / "records" / cell.record).read_text("utf-8"))
        after = copier.read("protect", record["stages"].get("protect", {}).get("key"), f"{subject}-*.png")
        heads += ["as published", f"perturbation, {AMPLIFIED} times"]
        cells.append(copier.cell(after, f"{subject}, photo as published with {row.name}"))
        same = after is not None and after.shape == before.shape
        change = 0.5 + AMPLIFIED * (after - before) if same and after is not None else None
        cells.append(copier.cell(change, f"{subject}, perturbation by {row.name}, amplified {AMPLIFIED} times"))
    return (Table(f"Photos of {subject}", tuple(heads), (("photos", tuple(cells)),)),)
