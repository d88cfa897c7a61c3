"""The training and held-out pictures: drawn once into shards, then read back as one array."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .draw import CLASSES, EMPTY, Shot, empty, identity, shot

SHOTS = 5
# Identities of each class and split. Subjects have a seed prefix of their own and are drawn in subjects.py.
IDENTITIES = {
    "train": {"person": 2400, "robot": 800, "monster": 800, "planet": 800, EMPTY: 300},
    "heldout": {"person": 200, "robot": 60, "monster": 60, "planet": 60, EMPTY: 20},
}
SHARD = 100  # identities


@dataclass(frozen=True)
class Pictures:
    """Pixels (N, 64, 64, 3) uint8, the identity's number (N,), and the facts of each picture."""

    pixels: np.ndarray
    identities: np.ndarray
    facts: list[dict[str, str]]


def _names(split: str) -> list[tuple[str, str]]:
    return [(noun, f"{split}-{i}") for noun in (*CLASSES, EMPTY) for i in range(IDENTITIES[split][noun])]


def _shots(noun: str, seed: str) -> list[Shot]:
    if noun == EMPTY:
        return [empty(f"{seed}-{number}") for number in range(SHOTS)]
    subject = identity(noun, seed)
    return [shot(subject, str(number)) for number in range(SHOTS)]


def _draw_shard(start: int, split: str, folder: Path) -> None:
    target = folder / f"{split}-{start:05d}.npz"
    if target.exists():
        return
    pixels, facts = [], []
    for noun, seed in _names(split)[start : start + SHARD]:
        for picture in _shots(noun, seed):
            pixels.append(picture.pixels)
            facts.append(picture.facts)
    temporary = target.with_suffix(".tmp.npz")
    np.savez(temporary, pixels=np.stack(pixels), facts=json.dumps(facts))
    temporary.rename(target)


def draw(folder: Path, workers: int = 2) -> None:
    """Draw every split into `folder`; shards that exist are kept, so a killed run goes on where it stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for split in ("heldout", "train"):
            starts = range(0, len(_names(split)), SHARD)
            list(pool.map(partial(_draw_shard, split=split, folder=folder), starts))


def load(folder: Path, split: str) -> Pictures:
    """Read a split that `draw` has written. Raises FileNotFoundError when a shard is missing."""
    pixels, facts = [], []
    for start in range(0, len(_names(split)), SHARD):
        with np.load(folder / f"{split}-{start:05d}.npz") as shard:
            pixels.append(shard["pixels"])
            facts += json.loads(str(shard["facts"]))
    stacked = np.concatenate(pixels)
    return Pictures(stacked, np.arange(len(stacked)) // SHOTS, facts)
