"""The content-addressed store: an artefact a stage, written once, checksummed, found again by what it was made from.

An artefact is a folder `<stage>/<key>` with its files and `manifest.json` (key content, checksums, cost, provenance). It is
written beside its place and renamed into it, so a killed run leaves either all of it or nothing that is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persbench.errors import PersbenchError

MANIFEST = "manifest.json"


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces: equal content, equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(content: Any) -> str:
    """SHA-256 of canonical JSON, shortened to 40 hex digits."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:40]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


@dataclass(frozen=True)
class Artefact:
    """A finished stage: where its files lie, and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    def path(self, name: str) -> Path:
        """A file of the artefact."""
        return self.folder / name


class Store:
    """All artefacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.built: list[str] = []  # "stage/key" of what this process made
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PersbenchError(f"cannot use {root} as store: {error.strerror}; choose another folder with --output") from None

    def folder(self, stage: str, key: str) -> Path:
        """Where an artefact lies, whether it exists or not."""
        return self.root / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Whether there is an artefact, whose files are not looked at."""
        return (self.folder(stage, key) / MANIFEST).is_file()

    def find(self, stage: str, key: str) -> Artefact | None:
        """A finished artefact whose files have their checksums; a damaged one is moved aside with a warning."""
        folder = self.folder(stage, key)
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            bad = [name for name, value in manifest["files"].items() if file_digest(folder / name) != value]
        except FileNotFoundError as error:
            if not folder.exists():
                return None
            bad = [Path(error.filename).name]
        except (ValueError, KeyError):
            bad = [MANIFEST]
        if not bad:
            return Artefact(folder, manifest)
        warnings.warn(f"{stage} {key[:12]} is damaged ({', '.join(bad)}); it is made again", stacklevel=2)
        aside = self.root / "damaged" / f"{stage}-{key}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        folder.replace(aside)
        return None

    def get(self, stage: str, content: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Artefact:
        """The artefact of a key content; `build(folder)` writes its files and returns what the manifest records, once ever.

        Runs that share a store wait for each other by a file lock, which the system frees when its holder dies.
        """
        from filelock import FileLock

        key = digest(content)
        found = self.find(stage, key)
        if found:
            return found
        target = self.folder(stage, key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_suffix(".lock")):
                found = self.find(stage, key)
                if found:
                    return found
                temporary = target.with_name(f".{key}.partial")
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                notes = build(temporary)
                names = sorted(p.name for p in temporary.iterdir())
                manifest = {
                    "stage": stage,
                    "key": key,
                    "content": content,
                    "files": {name: file_digest(temporary / name) for name in names},
                    **notes,
                }
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
                for name in (*names, MANIFEST):
                    with (temporary / name).open("rb") as stream:
                        os.fsync(stream.fileno())
                temporary.replace(target)
        except OSError as error:
            raise PersbenchError(f"cannot write to the store {self.root}: {error.strerror or error}") from error
        self.built.append(f"{stage}/{key}")
        return Artefact(target, manifest)

    def remove(self, stage: str, key: str) -> None:
        """Forget an artefact."""
        shutil.rmtree(self.folder(stage, key), ignore_errors=True)

    def explain(self, stage: str, content: Mapping[str, Any]) -> str:
        """Why an artefact has to be made: the part of its key that differs from the most similar one that exists."""
        best: tuple[int, list[str]] | None = None
        wanted = _flat(content)
        for path in sorted((self.root / stage).glob(f"*/{MANIFEST}")):
            try:
                have = _flat(json.loads(path.read_text("utf-8"))["content"])
            except (ValueError, KeyError, OSError):
                continue
            differing = sorted(k for k in {*wanted, *have} if wanted.get(k) != have.get(k))
            if best is None or len(differing) < best[0]:
                best = (len(differing), differing)
        if best is None:
            return "nothing like it in the store"
        return "nearest one differs in " + ", ".join(best[1][:4]) if best[1] else "it is in the store"


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping):
        found: dict[str, Any] = {}
        for key, value in content.items():
            found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: canonical(content)}
