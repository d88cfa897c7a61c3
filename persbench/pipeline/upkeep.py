"""What the store keeps: files dropped while a run goes on, and what `persbench store` shows, verifies and collects."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .stages import NO_FILES, PICTURE_FILES, READS, WEIGHT_FILES, Node, walk
from .store import MANIFEST, Store, canonical, file_digest

Keep = Literal["all", "pictures", "records"]
_WEIGHTS = dict.fromkeys(("protect", "tamper", "personalize"), WEIGHT_FILES)
# What is dropped of which stages. Released photos and contact sheets always stay: they are small, and what a reader wants to see.
DROPS: dict[Keep, dict[str, frozenset[str]]] = {"all": {}, "pictures": _WEIGHTS, "records": {**_WEIGHTS, "generate": PICTURE_FILES}}


class Keeper:
    """Drops an artefact's large files once every stage of a run that reads them is done.

    Tell it all cells before the first one begins (`expect`), then every stage that is done, by key (`finished`), or whole cells (`done`).
    What a failed stage still needs stays.
    """

    def __init__(self, store: Store, keep: Keep) -> None:
        self.store, self.drops = store, DROPS[keep]
        self._readers: dict[str, set[str]] = {}  # key of an artefact -> keys of the stages that still read its files
        self._reads: dict[str, list[tuple[str, str]]] = {}  # key of a stage -> stages and keys of what it reads that is to be dropped

    def expect(self, root: Node) -> None:
        """Count the stages of a cell, before the run begins."""
        for node in walk(root) if self.drops else ():
            large = [(each.stage, each.key) for each in node.inputs if self.drops.get(each.stage, NO_FILES) & READS[node.stage]]
            if large:
                self._reads[node.key] = large
            for _, key in large:
                self._readers.setdefault(key, set()).add(node.key)

    def finished(self, key: str) -> None:
        """A stage is in the store and will not read its inputs again."""
        for stage, needed in self._reads.pop(key, ()):
            readers = self._readers[needed]
            readers.discard(key)
            if not readers:
                self.store.drop(stage, needed, self.drops[stage])

    def done(self, root: Node, complete: bool = True) -> None:
        """A cell has its record; one that is not complete is scored again, from its pictures."""
        for node in walk(root):
            if complete or node is not root:
                self.finished(node.key)


@dataclass(frozen=True)
class Size:
    """What a stage takes on the disk."""

    artefacts: int = 0
    files: int = 0
    size: int = 0  # bytes
    dropped: int = 0  # files that `--keep` deleted


def sizes(store: Store) -> dict[str, Size]:
    """Space by stage."""
    found: dict[str, Size] = {}
    for stage, key in store.artefacts():
        files = [path for path in store.folder(stage, key).iterdir() if path.name != MANIFEST]
        artefact = store.peek(stage, key)
        old = found.get(stage, Size())
        dropped = len(artefact.manifest.get("dropped", ())) if artefact else 0
        space = sum(path.stat().st_size for path in files)
        found[stage] = Size(old.artefacts + 1, old.files + len(files), old.size + space, old.dropped + dropped)
    return found


def verify(store: Store) -> Iterator[tuple[str, str, list[str]]]:
    """Every artefact (stage, key) with the names of its damaged files; [] where it is sound."""
    for stage, key in store.artefacts():
        yield stage, key, store.inspect(stage, key)[1]


def used(store: Store, records: Path) -> set[str]:
    """Keys of what the records of a folder refer to, and of all that this was made from."""
    texts = sorted(records.glob("*.json"))
    known = {file_digest(path) for path in texts}
    waiting = {key for path in texts for key in _keys(path.read_text("utf-8", "replace"))}
    stages: dict[str, str] = {}
    for stage, key in store.artefacts():
        stages[key] = stage
        artefact = store.peek(stage, key)
        if stage == "record" and artefact and artefact.manifest["files"].get("record.json") in known:
            waiting.add(key)
    found: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key in stages and key not in found:
            found.add(key)
            artefact = store.peek(stages[key], key)
            waiting |= _keys(canonical(artefact.manifest["content"])) if artefact else set()
    return found


def _keys(text: str) -> set[str]:
    return set(re.findall(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", text))


def garbage(store: Store, records: Path, unused: bool, older_than_days: float | None) -> list[tuple[str, str]]:
    """Stage and key of what no record refers to (`unused`), of what was made before so many days, or of what is both."""
    if not unused and older_than_days is None:
        return []
    referred = used(store, records) if unused else set()
    latest = time.time() - 86400 * (older_than_days or 0)
    found = []
    for stage, key in store.artefacts():
        manifest = store.folder(stage, key) / MANIFEST
        made = manifest.stat().st_mtime if manifest.exists() else 0.0
        if key not in referred and made <= latest:
            found.append((stage, key))
    return found


def space(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def delete(path: Path) -> None:
    """Remove a file or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
