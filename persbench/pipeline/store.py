"""The content-addressed store: an artefact a stage, written once, checksummed, found again by what it was made from.

An artefact is a folder `<stage>/<key>` with its files and `manifest.json` (key content, checksums, cost, provenance). It is
written beside its place and renamed into it, so a killed run leaves either all of it or nothing that is ever read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from persbench.errors import PersbenchError
from persbench.progress import reporter

MANIFEST, DAMAGED = "manifest.json", "damaged"
# No stage fares better than the one that met these: full disk, quota, read-only file system.
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class StoreError(PersbenchError):
    """The store cannot be read or written; going on is of no use."""


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
    """Write a text file so that a reader sees the old or the new content, never a part. Raises StoreError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class Artefact:
    """A finished stage: where its files lie, and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    def path(self, name: str) -> Path:
        """A file of the artefact."""
        return self.folder / name

    def lacks(self, kinds: Collection[str]) -> bool:
        """Whether a file of these kinds (suffixes: ".png") was dropped to save space."""
        return any(Path(name).suffix in kinds for name in self.manifest.get("dropped", ()))


Stats = tuple[tuple[int, int, int] | None, ...]


class Place(NamedTuple):
    """Where a store is, for other processes: the folder, and the URL where its artefacts are as well."""

    root: str
    url: str = ""

    def open(self) -> Store:
        """The store."""
        if not self.url:
            return Store(Path(self.root))
        from .mirror import Mirror

        return Mirror(Path(self.root), self.url)


def existing_store(output: Path) -> Store | None:
    """The store of an output folder, for readers: None, and nothing is made, where there is none."""
    return store_of(output) if (output / "store").is_dir() or (output / "store-place").is_file() else None


def store_of(output: Path, where: str = "") -> Store:
    """The store of an output folder: below it, or at a path or URL, which the folder remembers once it was given."""
    note = output / "store-place"
    if where and not (note.is_file() and note.read_text("utf-8") == where):
        if "://" not in where:
            where = str(Path(where).resolve())
        write_atomically(note, where)
    where = where or (note.read_text("utf-8") if note.is_file() else "")
    if where and "://" not in where:
        return Store(Path(where))
    return Place(str(output / "store"), where).open()


class Store:
    """All artefacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.built: list[str] = []  # "stage/key" of what this process made
        self._sound: dict[Path, tuple[Stats, Artefact]] = {}  # whose checksums this process has seen
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot use {root} as store: {error.strerror}; choose another folder with --output") from None

    @property
    def place(self) -> Place:
        """What opens this store in another process."""
        return Place(str(self.root.resolve()))

    def folder(self, stage: str, key: str) -> Path:
        """Where an artefact lies, whether it exists or not."""
        return self.root / stage / key

    # --- reading

    def fetched(self, stage: str, key: str) -> Path:
        """The folder of an artefact, brought here if it lies elsewhere; whether it exists, and is sound, nobody has looked."""
        return self.folder(stage, key)

    def has(self, stage: str, key: str) -> bool:
        """Whether there is an artefact, whose files are not looked at."""
        return (self.folder(stage, key) / MANIFEST).is_file()

    def keys(self, stage: str) -> set[str]:
        """Keys of all artefacts of a stage, whose files are not looked at."""
        folder = self.root / stage
        return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()

    def _manifest(self, stage: str, key: str) -> tuple[Artefact | None, list[str]]:
        """An artefact as its manifest has it, or None; and the manifest's name where it is damaged."""
        folder = self.folder(stage, key)
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        except FileNotFoundError:
            return None, [MANIFEST] if folder.is_dir() else []
        except ValueError:
            manifest = None
        return (Artefact(folder, manifest), []) if sound(manifest, key) else (None, [MANIFEST])

    def peek(self, stage: str, key: str) -> Artefact | None:
        """An artefact as its manifest has it, whose files nobody has looked at; None where there is no sound manifest."""
        return self._manifest(stage, key)[0]

    def inspect(self, stage: str, key: str) -> tuple[Artefact | None, list[str]]:
        """The artefact (None where there is none, or no sound manifest), and the names of its damaged files. Changes nothing.

        Files are hashed once in a process, and again when their size or time of change is another one.
        """
        folder = self.folder(stage, key)
        if folder in self._sound and self._sound[folder][0] == _stats(self._sound[folder][1]):
            return self._sound[folder][1], []
        found, bad = self._manifest(stage, key)
        if found:
            before = _stats(found)
            files = found.manifest["files"].items()
            bad = [name for name, value in files if not found.path(name).is_file() or file_digest(found.path(name)) != value]
            if not bad:
                self._sound[folder] = before, found
        return found, bad

    def find(self, stage: str, key: str) -> Artefact | None:
        """A finished artefact whose files have their checksums; a damaged one is moved aside with a warning."""
        try:
            found, bad = self.inspect(stage, key)
        except FileNotFoundError:  # it was removed, or dropped, while we looked
            found, bad = None, [MANIFEST]
        if not bad:
            return found
        with self._writing(), self._locked(stage, key):
            return self._checked(stage, key)

    def _checked(self, stage: str, key: str) -> Artefact | None:
        """`find` for the holder of the lock."""
        found, bad = self.inspect(stage, key)
        if not bad:
            return found
        warnings.warn(f"{stage} {key[:12]} is damaged ({', '.join(bad)}); it is made again", stacklevel=3)
        aside = self.root / DAMAGED / f"{stage}-{key}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        self.folder(stage, key).replace(aside)
        return None

    # --- writing

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What the system says about a store that cannot be written, as one clear error."""
        try:
            yield
        except OSError as error:
            advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
            message = f"cannot write to the store {self.root}: {error.strerror or error}; {advice} and run again: what is done is kept"
            raise StoreError(message) from error

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[Path]:
        """The lock file of an artefact, locked: the system frees it when its holder dies."""
        from filelock import FileLock, Timeout

        path = self.root / stage / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reporter().note(f"another run makes {stage} {key[:12]}; waiting for it")
            lock.acquire()
        try:
            yield path
        finally:
            lock.release()

    def get(
        self, stage: str, content: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]], kinds: Collection[str] = ()
    ) -> Artefact:
        """The artefact of a key content; `build(folder)` writes its files and returns what the manifest records, once ever.

        Runs that share a store wait for each other. Where files of these `kinds` were dropped, they are built again. Raises StoreError.
        """
        key = digest(content)
        found = self.find(stage, key)
        if found and not found.lacks(kinds):
            return found
        with self._writing(), self._locked(stage, key) as lock:
            found = self._checked(stage, key)
            if found is None or found.lacks(kinds):
                temporary = self.root / stage / f".{key}.partial"
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                try:
                    notes = build(temporary)
                    found = self._complete(found, temporary) if found else self._add(stage, key, content, notes, temporary)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
                self.built.append(f"{stage}/{key}")
            # Only now: who waited on this very file finds the artefact, and nobody builds beside him who makes a new one.
            lock.unlink(missing_ok=True)
        return found

    def _add(self, stage: str, key: str, content: Mapping[str, Any], notes: Mapping[str, Any], temporary: Path) -> Artefact:
        files = _written(temporary)
        manifest = {"stage": stage, "key": key, "content": content, "files": files, **notes}
        manifest = _seal(temporary, manifest)
        target = self.folder(stage, key)
        temporary.replace(target)
        return Artefact(target, manifest)

    def _complete(self, found: Artefact, temporary: Path) -> Artefact:
        """Put what was dropped back into an artefact."""
        files, dropped = _written(temporary), found.manifest["dropped"]
        missing = [name for name in dropped if name not in files]
        if missing:
            raise PersbenchError(f"{found.manifest['stage']} was made again without {missing[0]}; its plug-in does not repeat itself")
        other = [name for name, value in dropped.items() if files[name] != value]
        if other:
            what = f"{found.manifest['stage']} {found.folder.name[:12]}"
            warnings.warn(f"{what} was made again with other bits ({', '.join(other)}): another machine or version?", stacklevel=4)
        for name in dropped:
            (temporary / name).replace(found.path(name))
        manifest = {key: value for key, value in found.manifest.items() if key != "dropped"}
        manifest["files"] = {**manifest["files"], **{name: files[name] for name in dropped}}
        return Artefact(found.folder, _seal(found.folder, manifest))

    def drop(self, stage: str, key: str, kinds: Collection[str]) -> int:
        """Delete an artefact's files of these kinds; the manifest stays and remembers them. Returns the bytes that this frees."""
        folder = self.folder(stage, key)
        found = self.peek(stage, key)
        if not found or not any(Path(name).suffix in kinds for name in found.manifest["files"]):
            return 0
        with self._writing(), self._locked(stage, key) as lock:
            found = self.peek(stage, key)
            manifest, gone = without(found.manifest, kinds) if found else ({}, {})
            freed = 0
            if found and gone:
                _seal(folder, manifest)  # first: files that nobody knows do no harm, known ones that are missing are damage
                for name in gone:
                    freed += found.path(name).stat().st_size
                    found.path(name).unlink()
            lock.unlink(missing_ok=True)
        return freed

    def remove(self, stage: str, key: str) -> None:
        """Forget an artefact: all at once, whenever the process dies."""
        folder = self.folder(stage, key)
        if folder.is_dir():
            with self._writing(), self._locked(stage, key) as lock:
                aside = folder.with_name(f".{key}.removed")
                shutil.rmtree(aside, ignore_errors=True)
                if folder.is_dir():
                    folder.replace(aside)
                    shutil.rmtree(aside)
                lock.unlink(missing_ok=True)

    # --- all of it

    def artefacts(self) -> Iterator[tuple[str, str]]:
        """Stage and key of everything in the store, finished or damaged."""
        for stage in sorted(path for path in self.root.iterdir() if path.is_dir() and path.name != DAMAGED):
            for folder in sorted(stage.iterdir()):
                if folder.is_dir() and not folder.name.startswith("."):
                    yield stage.name, folder.name

    def leftovers(self) -> list[Path]:
        """What dead runs left: unfinished folders, half-written files, locks, files that no manifest names; and damaged artefacts."""
        from filelock import FileLock, Timeout

        found = sorted((self.root / DAMAGED).iterdir()) if (self.root / DAMAGED).is_dir() else []
        for path in sorted([*self.root.glob("*/.*"), *self.root.glob("*/*.lock")]):
            lock = path if path.suffix == ".lock" else path.with_name(path.name.split(".")[1] + ".lock")
            try:
                if lock.exists():  # it is there before anything else is
                    FileLock(lock).acquire(timeout=0).lock.release()
                found.append(path)
            except Timeout:
                continue  # its run is alive
        for stage, key in self.artefacts():
            artefact = self.peek(stage, key)
            if artefact:
                found += sorted(p for p in artefact.folder.iterdir() if p.name not in {MANIFEST, *artefact.manifest["files"]})
        return list(dict.fromkeys(found))

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


def _stats(artefact: Artefact) -> Stats:
    """Inode, size and time of change of the files of an artefact, its manifest first; None for one that is missing."""
    found: list[tuple[int, int, int] | None] = []
    for name in (MANIFEST, *artefact.manifest["files"]):
        try:
            stat = artefact.path(name).stat()
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def _checksum(manifest: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in manifest.items() if key != "checksum"})


def _written(folder: Path) -> dict[str, str]:
    """Checksums of the files of a folder, once they are on the disk."""
    found = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = file_digest(path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return found


def sound(manifest: Any, key: str) -> bool:
    """Whether a manifest is one, and of this key. Those of before manifests were checksummed have no checksum."""
    try:
        checksum = manifest.get("checksum", "")
        return manifest["key"] == key and checksum in ("", _checksum(manifest)) and isinstance(manifest["files"], dict)
    except (KeyError, TypeError, AttributeError):
        return False


def without(manifest: Mapping[str, Any], kinds: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A manifest whose files of these kinds are dropped, and these files with their checksums."""
    gone = {name: value for name, value in manifest["files"].items() if Path(name).suffix in kinds}
    files = {name: value for name, value in manifest["files"].items() if name not in gone}
    return {**manifest, "files": files, "dropped": {**manifest.get("dropped", {}), **gone}}, gone


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its own checksum."""
    found: dict[str, Any] = json.loads(canonical(manifest))
    found["checksum"] = _checksum(found)
    return found


def _seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write a manifest with its own checksum."""
    found = sealed(manifest)
    temporary = folder / f".{MANIFEST}"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(found, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)
    return found


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping):
        found: dict[str, Any] = {}
        for key, value in content.items():
            found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: canonical(content)}
