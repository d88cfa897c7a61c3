"""A store in object storage (S3, GCS, ...): a working copy on this machine, and everything that is finished at an fsspec URL.

An artefact is fetched when it is first read, and sent when it is made, its manifest last: there is all of it or nothing. Object
storage has no lock that goes with its holder, so a lock there is an object whose holder keeps changing it; one that stays as it is for
`LEASE` seconds belongs to a dead run, and the next one takes it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from persbench.progress import reporter

from .store import MANIFEST, Artefact, Place, Store, StoreError, file_digest, sealed, sound, without

LEASE, BEAT, POLL = 60.0, 10.0, 1.0  # seconds
FRESH = 60.0  # seconds that a list of what is there is believed; who needs an artefact asks for it by name


class Mirror(Store):
    """A store whose artefacts are also at a URL, for other machines."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.url = url.rstrip("/")
        self._lists: dict[str, tuple[float, set[str]]] = {}
        self._sent: set[tuple[str, str]] = set()  # what is known to be at the URL
        try:
            from fsspec.core import url_to_fs

            folders = {"auto_mkdir": True} if self.url.startswith(("file:", "local:")) else {}  # only file systems have any
            self.files, self.top = url_to_fs(self.url, **folders)
        except (ImportError, ValueError) as error:
            raise StoreError(f"cannot use {url} as store: {str(error).splitlines()[0]}") from None

    @property
    def place(self) -> Place:
        return Place(str(self.root.resolve()), self.url)

    # --- what is at the URL

    def _there(self, *names: str) -> str:
        return "/".join((self.top.rstrip("/"), *names))

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Whatever a file system of fsspec raises, as one clear error."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # each has exceptions of its own
            message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            advice = "run again when it can be reached: what is done is kept"
            raise StoreError(f"cannot use the store {self.url}: {message}; {advice}") from error

    def _listed(self, stage: str) -> set[str]:
        """Keys of the finished artefacts of a stage, as they were within the last seconds."""
        when, keys = self._lists.get(stage, (float("-inf"), set()))
        if time.monotonic() - when > FRESH:
            with self._talking():
                self.files.invalidate_cache()
                try:
                    found = self.files.find(self._there(stage))
                except FileNotFoundError:
                    found = []
            keys = {path.split("/")[-2] for path in found if path.endswith(f"/{MANIFEST}")}
            self._lists[stage] = time.monotonic(), keys
        return keys

    def _remote_manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        with self._talking():
            try:
                manifest = json.loads(self.files.cat_file(self._there(stage, key, MANIFEST)))
            except FileNotFoundError:
                return None
            except ValueError:
                manifest = None
        if not sound(manifest, key) or any(Path(name).name != name or name in ("..", MANIFEST) for name in manifest["files"]):
            warnings.warn(f"{stage} {key[:12]} is damaged in {self.url} ({MANIFEST})", stacklevel=2)
            return None
        return manifest

    def _fetch(self, stage: str, key: str) -> bool:
        """Copy an artefact here. Files that do not have their checksums are reported, and it is as if it were not there."""
        manifest = self._remote_manifest(stage, key)
        if manifest is None:
            return False
        temporary = self.root / stage / f".{key}.fetched-{os.getpid()}-{threading.get_ident()}"
        with self._writing():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        try:
            bad = []
            for name, checksum in manifest["files"].items():
                with self._talking():
                    try:
                        self.files.get_file(self._there(stage, key, name), str(temporary / name))
                    except FileNotFoundError:
                        bad.append(name)
                        continue
                if file_digest(temporary / name) != checksum:
                    bad.append(name)
            if bad:
                warnings.warn(f"{stage} {key[:12]} is damaged in {self.url} ({', '.join(bad)}); it is made again", stacklevel=2)
                return False
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
            with self._writing():
                try:
                    temporary.replace(self.folder(stage, key))
                except OSError:
                    if not super().has(stage, key):  # else another process was faster
                        raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._sent.add((stage, key))
        return True

    def _send(self, stage: str, key: str) -> None:
        found = super().peek(stage, key)
        if found is None:
            return
        with self._talking():
            for name in found.manifest["files"]:
                self.files.put_file(str(found.path(name)), self._there(stage, key, name))
            self.files.pipe_file(self._there(stage, key, MANIFEST), found.path(MANIFEST).read_bytes())
        self._sent.add((stage, key))

    # --- reading

    def fetched(self, stage: str, key: str) -> Path:
        if not super().has(stage, key):
            self._fetch(stage, key)
        return self.folder(stage, key)

    def has(self, stage: str, key: str) -> bool:
        return super().has(stage, key) or key in self._listed(stage)

    def keys(self, stage: str) -> set[str]:
        return super().keys(stage) | self._listed(stage)

    def peek(self, stage: str, key: str) -> Artefact | None:
        found = super().peek(stage, key)
        if found is None and key in self._listed(stage):
            manifest = self._remote_manifest(stage, key)
            found = Artefact(self.folder(stage, key), manifest) if manifest else None
        return found

    def find(self, stage: str, key: str) -> Artefact | None:
        found = super().find(stage, key)
        if found is None and self._fetch(stage, key):
            found = super().find(stage, key)
        if found and (stage, key) not in self._sent:  # made before there was a URL, or in a run that could not reach it
            if self._remote_manifest(stage, key) is None:
                self._send(stage, key)
            self._sent.add((stage, key))
        return found

    def _checked(self, stage: str, key: str) -> Artefact | None:
        found = super()._checked(stage, key)
        if found is None and self._fetch(stage, key):
            found = super()._checked(stage, key)
        return found

    # --- writing

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[Path]:
        with super()._locked(stage, key) as path, self._leased(stage, key):
            yield path

    @contextmanager
    def _leased(self, stage: str, key: str) -> Iterator[None]:
        """The lock of an artefact at the URL.

        At worst two machines make the same artefact: where a file system cannot create exclusively, or a holder was out of reach for long.
        """
        path, me = self._there("locks", f"{stage}-{key}"), uuid.uuid4().hex
        seen, since, noted = b"", time.monotonic(), False
        while True:
            with self._talking():
                try:
                    self.files.pipe_file(path, f"{me} 0".encode(), mode="create")
                    break
                except FileExistsError:
                    try:
                        now = self.files.cat_file(path)
                    except FileNotFoundError:
                        continue
                    if now != seen:
                        seen, since = now, time.monotonic()
                    elif time.monotonic() - since > LEASE:
                        with suppress(FileNotFoundError):
                            self.files.rm_file(path)
                        continue
            if not noted:
                reporter().note(f"another machine makes {stage} {key[:12]}; waiting for it")
                noted = True
            time.sleep(POLL)
        over = threading.Event()

        def beat() -> None:
            count = 0
            while not over.wait(BEAT):
                count += 1
                with suppress(Exception):  # the next one may get through; if none does, another machine takes over
                    self.files.pipe_file(path, f"{me} {count}".encode())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(Exception):  # a lock that stays is one of a dead run
                self.files.rm_file(path)

    def _add(self, stage: str, key: str, content: Mapping[str, Any], notes: Mapping[str, Any], temporary: Path) -> Artefact:
        found = super()._add(stage, key, content, notes, temporary)
        self._send(stage, key)
        return found

    def _complete(self, found: Artefact, temporary: Path) -> Artefact:
        found = super()._complete(found, temporary)
        self._send(found.manifest["stage"], found.folder.name)
        return found

    def drop(self, stage: str, key: str, kinds: Collection[str]) -> int:
        freed = super().drop(stage, key, kinds) if super().has(stage, key) else 0
        manifest = self._remote_manifest(stage, key)
        left, gone = without(manifest, kinds) if manifest else ({}, {})
        if gone:
            with self._talking():
                self.files.pipe_file(self._there(stage, key, MANIFEST), json.dumps(sealed(left), indent=1, sort_keys=True).encode())
                for name in gone:
                    with suppress(FileNotFoundError):
                        self.files.rm_file(self._there(stage, key, name))
        return freed

    def remove(self, stage: str, key: str) -> None:
        with self._talking(), suppress(FileNotFoundError):
            self.files.rm_file(self._there(stage, key, MANIFEST))  # first: without it there is no artefact
            self.files.rm(self._there(stage, key), recursive=True)
        self._lists.pop(stage, None)
        self._sent.discard((stage, key))
        super().remove(stage, key)
