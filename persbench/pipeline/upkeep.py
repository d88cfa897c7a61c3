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

    Tell it all cells (`plan`) and the stages that will run (`reads`) before the first one begins (`begin`), then every one that is done
    (`finished`). What a failed stage still needs stays.
    """

    def __init__(self, store: Store, keep: Keep) -> None:
        self.store, self.drops = store, DROPS[keep]
        self._large: dict[str, str] = {}  # key of an artefact with files to be dropped -> its stage
        self._readers: dict[str, set[str]] = {}  # the same -> keys of the stages that still read it
        self._reads: dict[str, list[str]] = {}  # key of a stage -> what it reads
        self._dropped: dict[str, frozenset[str]] = {}  # key of an artefact -> kinds of files that were dropped before the run

    def plan(self, root: Node) -> None:
        """A cell that belongs to the run."""
        if self.drops:
            self._large |= {node.key: node.stage for node in walk(root) if node.stage in self.drops}

    def reads(self, node: Node) -> None:
        """A stage that will run."""
        for needed in node.inputs:
            if self.drops.get(needed.stage, NO_FILES) & READS[node.stage]:
                self._readers.setdefault(needed.key, set()).add(node.key)
                self._reads.setdefault(node.key, []).append(needed.key)

    def lacks(self, node: Node, kinds: frozenset[str]) -> bool:
        """Whether a stage that reads files of `kinds` would have to make an artefact again."""
        if not kinds & DROPS["records"].get(node.stage, NO_FILES):
            return False
        if node.key not in self._dropped:
            found = self.store.peek(node.stage, node.key)
            self._dropped[node.key] = frozenset(Path(name).suffix for name in (found.manifest.get("dropped", ()) if found else ()))
        return bool(kinds & self._dropped[node.key])

    def begin(self) -> None:
        """Drop what earlier runs left and no stage of this one reads."""
        for key in [key for key in self._large if key not in self._readers]:
            self._drop(key)

    def finished(self, key: str) -> None:
        """A stage is in the store and will not read its inputs again."""
        for needed in self._reads.pop(key, ()):
            self._readers[needed].discard(key)
            if not self._readers[needed]:
                self._drop(needed)

    def _drop(self, key: str) -> None:
        stage = self._large[key]
        self.store.drop(stage, key, self.drops[stage])


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
