"""Submissions: records, released photos and generated pictures of somebody's runs in one archive, and whether to believe them.

A ZIP with `manifest.json` (format, SHA-256 of every other file), `records/ID.json`, `photos/KEY/SUBJECT-000.png` (released ones),
`pictures/KEY/picture-000.png`, and optionally `weights/KEY.safetensors` (released models). Whoever sent it is not trusted: it is read
member by member and never unpacked by its own names; names, kinds and sizes are checked before the first byte is decompressed.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from persbench import pictures, registry
from persbench.contracts import Budget, Evidence, PictureSet, Row
from persbench.errors import PersbenchError

from .checks import check_rows
from .rescore import GENERATED_BY, asked_sets, cell_of, same_protocol
from .spec import Cell
from .stages import WEIGHTS, Pipeline, check_photos
from .store import Store, digest, store_of, write_atomically

FORMAT = 1
MANIFEST_NAME = "manifest.json"
# What an entry may be called: anything else (absolute, "..", backslashes, markup, pickles) is refused unread.
NAMES = re.compile(
    r"manifest\.json|records/[0-9a-f]{16}\.json|(photos|pictures)/[0-9a-f]{40}/[A-Za-z0-9_-]{1,100}\.png|weights/[0-9a-f]{40}\.safetensors"
)
MIB = 2**20
LIMITS = {"manifest.json": 64 * MIB, "records": 16 * MIB, "photos": 16 * MIB, "pictures": 16 * MIB, "weights": 6144 * MIB}  # bytes
MAX_ENTRIES, MAX_DIRECTORY, MAX_TOTAL = 200_000, 32 * MIB, 32 * 1024 * MIB
MAX_RATIO = 200  # uncompressed to compressed, of entries over a mebibyte
MAX_TEXT = 300  # characters of a name
MAX_SIDE = 1024  # pixels of a picture
TOLERANCE, RERUN_TOLERANCE = 1e-3, 0.05  # absolute, and relative to the value


class SubmissionError(PersbenchError):
    """A submission that cannot be believed, or not even read."""


# --- what is in it

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Text = Annotated[str, StringConstraints(max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Manifest(_Part):
    format: Literal[1]
    persbench: Text
    files: dict[Text, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]]


class _Row(_Part):
    metric: Text
    set: Text
    index: Annotated[int, Field(ge=0, lt=100_000)]
    value: FiniteFloat | None
    error: Text = ""


class _Spent(_Part):
    key: Key
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    peak_mib: Annotated[FiniteFloat, Field(ge=0)]


class Record(_Part):
    """A record as the pipeline writes it; what this does not name is left out."""

    status: Literal["ok"]
    cell: dict[Text, Any]
    attack: dict[Text, Any]
    base_digest: Text
    evaluators: Text
    protocol: dict[Text, Any]
    margin: FiniteFloat
    configs: dict[Text, dict[Text, Any]]
    stages: dict[Text, _Spent]
    pictures: dict[Text, Key]
    identifier_tokens: dict[Text, list[int]] = {}
    rows: list[_Row]
    provenance: dict[Text, Any] = {}


# --- packing


def pack(paths: Sequence[Path], archive: Path, weights: bool = False) -> int:
    """Write a submission of records (files below `OUTPUT/records`, or that folder); returns how many. Raises PersbenchError.

    Cells that have no score are left out. The base model's path is replaced by the name of its folder.
    """
    found = sorted({file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])})
    members: dict[str, bytes | Path] = {}
    count = 0
    for path in found:
        try:
            record = json.loads(path.read_text("utf-8"))
            status, cell = record.get("status", "ok"), record["cell"]
        except (OSError, ValueError, KeyError, AttributeError):
            raise PersbenchError(f"{path} is not a record") from None
        if status != "ok":
            continue
        store = store_of(path.parent.parent)
        cell["base"] = Path(cell["base"]).name
        try:
            members |= _attachments(record, store, weights)
        except PersbenchError as error:
            raise PersbenchError(f"{path}: {error}") from None
        members[f"records/{record_name(cell)}.json"] = json.dumps(record, indent=1, sort_keys=True).encode()
        count += 1
    if not count:
        raise PersbenchError("there is no record of a finished cell among these; give records, or a folder of them")
    temporary = archive.with_name(f".{archive.name}.partial")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as target:
            digests = {}
            for name, content in sorted(members.items()):
                data = content if isinstance(content, bytes) else content.read_bytes()
                digests[name] = hashlib.sha256(data).hexdigest()
                _put(target, name, data)
            manifest = {"format": FORMAT, "persbench": version("persbench"), "files": digests}
            _put(target, MANIFEST_NAME, json.dumps(manifest, indent=1, sort_keys=True).encode())
        temporary.replace(archive)
    except OSError as error:
        raise PersbenchError(f"cannot write {archive}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def record_name(cell: Mapping[str, Any]) -> str:
    """The name of a record in a submission."""
    return digest(cell)[:16]


def _attachments(record: Mapping[str, Any], store: Store, weights: bool) -> dict[str, bytes | Path]:
    wanted = [("pictures", "generate", key) for key in sorted(set(record["pictures"].values()))]
    protection = record["configs"].get("protect")
    key = record["stages"]["protect"]["key"] if protection else ""
    if protection and protection["budget_levels"] is not None:
        wanted.append(("photos", "protect", key))
    found: dict[str, bytes | Path] = {}
    for folder, stage, each in wanted:
        artefact = store.find(stage, each)
        if artefact is None or (stage == "generate" and artefact.lacks({".png"})):
            raise PersbenchError("its pictures are no longer in the store; run its cell again with --keep pictures")
        found |= {f"{folder}/{each}/{name}": artefact.path(name) for name in artefact.manifest["files"] if name.endswith(".png")}
    if weights and protection:
        artefact = store.find("protect", key)
        if artefact is None or artefact.lacks({".safetensors"}):
            raise PersbenchError("the released weights are no longer in the store; run its cell again with --keep all")
        if WEIGHTS in artefact.manifest["files"]:
            found[f"weights/{key}.safetensors"] = artefact.path(WEIGHTS)
    return found


def _put(target: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name)  # of 1980, so that equal content is an equal archive
    info.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    target.writestr(info, data)


# --- reading what somebody sent


class Archive:
    """An open submission whose names, kinds, sizes and digests hold. Raises SubmissionError."""

    def __init__(self, path: Path) -> None:
        self._files = ExitStack()
        try:
            stream = self._files.enter_context(path.open("rb"))
            _check_directory(stream)
            self._zip = self._files.enter_context(zipfile.ZipFile(stream))
            self._entries = _checked_entries(self._zip.infolist())
            self.manifest = _parse(_Manifest, self._read(MANIFEST_NAME), MANIFEST_NAME)
            named = set(self.manifest.files)
            odd = sorted(named ^ (set(self._entries) - {MANIFEST_NAME}))
            if odd:
                raise SubmissionError(f"{_shown(odd[0])} is in the archive or in its manifest alone")
        except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError) as error:
            self.close()
            raise SubmissionError(f"{path} is not a sound ZIP archive: {error}") from None
        except OSError as error:
            self.close()
            raise SubmissionError(f"cannot read {path}: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def names(self, start: str = "") -> list[str]:
        """Names of its entries that begin so, sorted."""
        return sorted(name for name in self._entries if name.startswith(start))

    def _read(self, name: str) -> bytes:
        if name not in self._entries:
            raise SubmissionError(f"the archive has no {name}")
        info = self._entries[name]
        try:
            with self._zip.open(info) as stream:
                data = stream.read(info.file_size + 1)
                rest = stream.read(1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise SubmissionError(f"{_shown(name)} cannot be decompressed: {error}") from None
        if len(data) != info.file_size or rest:
            raise SubmissionError(f"{_shown(name)} is not as long as the archive says")
        return data

    def read(self, name: str) -> bytes:
        """The bytes of an entry, which have the manifest's digest."""
        data = self._read(name)
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name]:
            raise SubmissionError(f"{_shown(name)} does not have the digest of the manifest")
        return data

    def record(self, name: str) -> tuple[dict[str, Any], Cell]:
        """A record, checked against its schema, without what that does not name; and its cell."""
        found = _parse(Record, self.read(name), name).model_dump()
        try:
            right = record_name(found["cell"])
        except ValueError:
            right = ""
        if name != f"records/{right}.json":
            raise SubmissionError(f"{name} does not bear the digest of its cell")
        cell = cell_of(found)
        for text in (cell.track, cell.base, cell.method, cell.attack, cell.subject, cell.device, *cell.group):
            if len(text) > MAX_TEXT or not text.isprintable():
                raise SubmissionError(f"{name}: {_shown(text)} is no name")
        if cell.protocol:
            raise SubmissionError(f"{name} was run under a changed protocol; its numbers compare with no others")
        if cell.precision not in ("fp32", "fp16", "bf16"):
            raise SubmissionError(f"{name}: unknown precision {_shown(cell.precision)}")
        return {**found, "cell": json.loads(json.dumps(cell.to_dict()))}, cell

    def pictures(self, start: str, count: int) -> torch.Tensor:
        """The `count` pictures whose names begin so, (N, 3, H, H) in [0, 1]."""
        names = self.names(start)
        if len(names) != count:  # before any is decoded
            raise SubmissionError(f"there must be {count} pictures {start}...; there are {len(names)}")
        found = [decode_png(self.read(name), name) for name in names]
        if len({found[0].shape[-1], *(side for each in found for side in each.shape[-2:])}) > 1:
            raise SubmissionError(f"pictures {start}... are not squares of one size")
        return torch.stack(found).float() / 255

    def check_weights(self, name: str) -> None:
        """Raise SubmissionError unless an entry is safetensors of finite numbers. Nothing in it is executed."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(self.read(name))
        except (SafetensorError, ValueError, KeyError) as error:
            raise SubmissionError(f"{_shown(name)} is not safetensors: {error}") from None
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise SubmissionError(f"{_shown(name)} has weights that are not finite")


def _check_directory(stream: Any) -> None:
    """Raise SubmissionError when the directory of a ZIP is larger than its limits: reading it alone would fill the memory."""
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, end - 22 - 65_535 - 20 - 56))
    tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise SubmissionError(f"{_shown(stream.name)} is not a ZIP archive")
    count, size = struct.unpack("<HL", tail[at + 10 : at + 16])
    if tail[max(0, at - 20) :].startswith(b"PK\6\7"):  # a larger archive: what stands here counts, whatever the end says
        wide = tail[max(0, at - 76) : at - 20]
        if not wide.startswith(b"PK\6\6"):
            raise SubmissionError(f"{_shown(stream.name)} is not a ZIP archive as it is usually written")
        count, size = struct.unpack("<QQ", wide[32:48])
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise SubmissionError(f"{MAX_ENTRIES} entries in a directory of {MAX_DIRECTORY} bytes are allowed; there are {count} in {size}")
    stream.seek(0)


def _checked_entries(infos: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in infos:
        if len(found) == MAX_ENTRIES:
            raise SubmissionError(f"the archive has more than {MAX_ENTRIES} entries")
        name = info.orig_filename
        if not NAMES.fullmatch(name) or info.filename != name:
            hint = (
                "; weights are taken as weights/KEY.safetensors only"
                if re.search(r"\.(bin|ckpt|pkl|pickle|pt|pth|npz?)$", name, re.I)
                else ""
            )
            raise SubmissionError(f"an entry may not be called {_shown(name)}{hint}")
        if name in found:
            raise SubmissionError(f"{_shown(name)} is in the archive twice")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise SubmissionError(f"{_shown(name)} is not a regular file")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SubmissionError(f"{_shown(name)} is encrypted, or compressed in a way that is not taken")
        limit = LIMITS[name.partition("/")[0]]
        if info.file_size > limit:
            raise SubmissionError(f"{_shown(name)} has {info.file_size} bytes; {limit} are allowed")
        if info.file_size > MIB and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise SubmissionError(f"{_shown(name)} is compressed more than {MAX_RATIO} times")
        total += info.file_size
        if total > MAX_TOTAL:
            raise SubmissionError(f"the archive has more than {MAX_TOTAL} bytes uncompressed")
        found[name] = info
    return found


def _shown(name: str) -> str:
    """A name out of a submission, as text that a terminal or page shows and does not obey."""
    return ascii(name[:100])


def _parse(model: type[Any], data: bytes, name: str) -> Any:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SubmissionError(f"{name}: {where + ': ' if where else ''}{first['msg']}") from None


def decode_png(data: bytes, name: str) -> torch.Tensor:
    """The 8-bit levels (3, H, W) of a PNG; its size is known before a pixel is decoded. Raises SubmissionError."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise SubmissionError(f"{_shown(name)} is not a PNG")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            if max(opened.size) > MAX_SIDE:
                raise SubmissionError(f"{_shown(name)} has {opened.width} × {opened.height} pixels; {MAX_SIDE} a side are allowed")
            if getattr(opened, "n_frames", 1) != 1 or opened.mode != "RGB":
                raise SubmissionError(f"{_shown(name)} is not one picture of 8-bit RGB")
            raw = bytearray(opened.tobytes())
            return torch.frombuffer(raw, dtype=torch.uint8).view(opened.height, opened.width, 3).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SubmissionError(f"{_shown(name)} cannot be decoded: {error}") from None


# --- believing it


@dataclass
class Verdict:
    """What was found: of the whole submission, and of each record (name -> reasons against it, [] for none)."""

    status: Literal["verified", "recomputed", "failed"]
    reasons: list[str] = field(default_factory=list)
    records: dict[str, list[str]] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    rerun: list[str] = field(default_factory=list)  # records whose cells were run again
    unknown_metrics: list[str] = field(default_factory=list)  # of rows that nothing installed here can recompute

    def status_of(self, name: str) -> str:
        """The status of a record: that of the submission, or failed for itself."""
        return "failed" if self.records[name] else self.status


def verify(
    path: Path,
    *,
    rerun: int = 0,
    base: str = "",
    output: Path | None = None,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
    rerun_tolerance: float = RERUN_TOLERANCE,
    extract: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Check a submission: archive, schema, digests, budgets; recompute every metric; run `rerun` random cells again.

    `base`: the verifier's own base model for cells that were not run on the track's (paths in a submission are never followed).
    `output`: whose store re-runs use. `extract`: a folder for the records (with recomputed rows), pictures and verdicts of one that holds.
    """
    with ExitStack() as stack:
        root = output if output is not None and rerun else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = store_of(root)
        try:
            archive = stack.enter_context(Archive(path))
            names = archive.names("records/")
            if not names:
                raise SubmissionError("the archive has no records")
            for name in archive.names("weights/"):
                archive.check_weights(name)
        except SubmissionError as error:
            return Verdict("failed", [str(error)])
        pipelines: dict[tuple[str, str], Pipeline] = {}

        def pipeline(track: str, precision: str) -> Pipeline:
            if (track, precision) not in pipelines:
                pipelines[track, precision] = Pipeline(track, base, store, precision, device)
            return pipelines[track, precision]

        verdict = Verdict("recomputed")
        sound: dict[str, Judged] = {}
        for name in names:
            try:
                judged = Judged(archive, name, pipeline)
                note(f"recompute {judged.title}")
                verdict.cells[judged.short] = judged.title
                verdict.unknown_metrics += judged.unknown_metrics
                verdict.records[judged.short] = judged.differences(tolerance)
                sound[judged.short] = judged
            except PersbenchError as error:
                verdict.records[Path(name).stem] = [str(error)]
        verdict.unknown_metrics = sorted(set(verdict.unknown_metrics))
        good = [name for name, reasons in verdict.records.items() if not reasons]
        # Not from a seed: whoever submits must not know what will be run again.
        for name in random.SystemRandom().sample(good, min(rerun, len(good))):
            note(f"run again {verdict.cells[name]}")
            try:
                verdict.records[name] += sound[name].rerun_differences(rerun_tolerance)
            except PersbenchError as error:
                verdict.records[name].append(f"cannot be run again: {error}")
            verdict.rerun.append(name)
        if any(verdict.records.values()):
            verdict.status = "failed"
        elif verdict.rerun:
            verdict.status = "verified"
        if extract is not None and verdict.status != "failed":
            _extract(verdict, sound, extract, path)
        return verdict


class Judged:
    """A record of a submission and what it claims, beside what its pictures say."""

    def __init__(self, archive: Archive, name: str, pipeline: Callable[[str, str], Pipeline]) -> None:
        self.archive, self.name, self.short = archive, name, Path(name).stem
        self.record, self.cell = archive.record(name)
        self.pipeline = pipeline(self.cell.track, self.cell.precision)
        self.title = f"{self.cell.method} · {self.cell.attack} · {self.cell.subject}"
        self._check_protocol()

    def _check_protocol(self) -> None:
        track, record = self.pipeline.track, self.record
        same_protocol(track, record)
        ours = json.loads(json.dumps(asdict(track.protocol)))
        odd = [name for name in ours if name not in ("options", *GENERATED_BY) and record["protocol"].get(name) != ours[name]]
        if odd or record["margin"] != track.protocol.margin:
            raise SubmissionError(f"its protocol is not that of the track ({(odd or ['margin'])[0]})")
        if record["evaluators"] != track.evaluator_digest():
            raise SubmissionError("it was scored by other evaluators than those of the track")

    def evidence(self) -> Evidence:
        """What metrics look at, from the archive's pictures and the track's own photos. Checks counts, sizes and budgets."""
        asked, keys = asked_sets(self.pipeline, self.cell), self.record["pictures"]
        if set(asked) != set(keys):
            odd = sorted(set(asked) ^ set(keys))[0]
            raise SubmissionError(f"its picture sets are not those of its cell ({_shown(odd)})")
        sets = {}
        size = 0
        for label, each in asked.items():
            found = self.archive.pictures(f"pictures/{keys[label]}/", len(each.prompts))
            size = size or found.shape[-1]
            if found.shape[-1] != size:
                raise SubmissionError(f"pictures of {label} have another size than those of attacked")
            references = pictures.read(each.target.references, size) if each.target else None
            sets[label] = PictureSet(found, each.prompts, references, each.class_noun)
        published = pictures.read(self.pipeline.track.subject(self.cell.subject).published, size)
        return Evidence(sets, published, self._released(published))

    def _released(self, published: torch.Tensor) -> torch.Tensor:
        protection, spent = self.record["configs"].get("protect"), self.record["stages"].get("protect")
        budget = protection.get("budget_levels") if protection else None
        if self.cell.method in registry.names("methods"):
            says = "photos" in registry.load("methods", self.cell.method).changes  # type: ignore[attr-defined]
            if says != (budget is not None):
                raise SubmissionError(f"{self.cell.method} {'changes' if says else 'does not change'} photos; the record says otherwise")
        if budget is None or spent is None:
            return published
        if not isinstance(budget, (int, float)) or not 0 < budget <= 255:
            raise SubmissionError("its budget is not a number of levels")
        if self.cell.budget is not None and budget != self.cell.budget:
            raise SubmissionError(f"it was run with a budget of {budget:g} levels and asked for {self.cell.budget:g}")
        photos = self.archive.pictures(f"photos/{spent['key']}/{self.cell.subject}-", len(published))
        check_photos(self.cell.method, published, photos, Budget(budget))
        return photos

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of every installed metric, from the pictures."""
        found: list[Row] = []
        evidence = self.evidence()
        for name, plugin in registry.load_all("metrics").items():
            metric = registry.configure(name, plugin, {**self.pipeline.track.protocol.options.get(name, {}), **self.cell.options_of(name)})
            if metric.missing(self.pipeline.base_folder):
                continue
            try:
                found += check_rows(name, metric, metric.measure(evidence, self.pipeline.evaluators), evidence)
            except PersbenchError:
                raise
            except Exception as error:  # whatever a plug-in raises
                raise SubmissionError(f"{name} cannot be recomputed: {type(error).__name__}: {error}") from error
        return found

    @cached_property
    def unknown_metrics(self) -> list[str]:
        """Metrics of its rows that nothing installed here computes."""
        ours = {row.metric for row in self.rows}
        return sorted({row["metric"] for row in self.record["rows"]} - ours)

    def differences(self, tolerance: float) -> list[str]:
        """Where the claimed rows are not the recomputed ones."""
        theirs: dict[tuple[str, str, int], float | None] = {}
        for row in self.record["rows"]:
            place = (row["metric"], row["set"], row["index"])
            if place in theirs:
                return [f"two rows for {row['metric']} of {row['set']}, picture {row['index']}"]
            theirs[place] = row["value"]
        ours = {(row.metric, row.set, row.index): row.value for row in self.rows}
        found: dict[tuple[str, str], int] = defaultdict(int)
        metrics = {metric for metric, _, _ in theirs}
        for place in {*ours, *theirs}:
            if place not in ours and place[0] in self.unknown_metrics:
                continue
            if place not in theirs and place[0] not in metrics:
                continue  # a metric that is newer than the submission
            if not close(ours.get(place), theirs.get(place), tolerance) or (place in ours) != (place in theirs):
                found[place[:2]] += 1
        return [f"{metric} of {where} differs from its pictures in {count} rows" for (metric, where), count in sorted(found.items())]

    def rerun_differences(self, tolerance: float) -> list[str]:
        """Where means over a picture set differ when the cell is run again, here."""
        own = self.pipeline
        if own.base_digest != self.record["base_digest"]:
            raise SubmissionError("it was run on another base model; give yours with --base")
        cell = replace(self.cell, base="", device=own.device)
        record = json.loads(own.plan(cell).run(own.store).path("record.json").read_text("utf-8"))
        ours, theirs = _means(record["rows"]), _means(self.record["rows"])
        odd = [place for place in sorted(ours) if place in theirs and not close(ours[place], theirs[place], tolerance)]
        return [
            f"run again, {metric} of {where} is {_number(ours[metric, where])}, not {_number(theirs[metric, where])}"
            for metric, where in odd
        ]


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4g}"


def close(one: float | None, other: float | None, tolerance: float) -> bool:
    """Whether two values are equal up to a tolerance, absolute and relative; missing is equal to missing alone.

    >>> close(40.0, 40.03, 1e-3), close(0.5, 0.51, 1e-3), close(None, 0.0, 1.0)
    (True, False, False)
    """
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance * (1 + abs(one))


def _means(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float | None]:
    found: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for row in rows:
        found[row["metric"], row["set"]].append(row["value"])
    means: dict[tuple[str, str], float | None] = {}
    for place, values in found.items():
        numbers = [value for value in values if value is not None]
        means[place] = sum(numbers) / len(numbers) if len(numbers) == len(values) else None
    return means


def verdict_dict(verdict: Verdict, path: Path) -> dict[str, Any]:
    """A verdict as JSON, with the archive that it is about."""
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        sha256 = ""
    records = {
        name: {"status": verdict.status_of(name), "reasons": reasons, "cell": verdict.cells.get(name, ""), "rerun": name in verdict.rerun}
        for name, reasons in verdict.records.items()
    }
    return {
        "format": FORMAT,
        "file": path.name,
        "sha256": sha256,
        "persbench": version("persbench"),
        "status": verdict.status,
        "reasons": verdict.reasons,
        "unknown_metrics": verdict.unknown_metrics,
        "records": records,
    }


def _extract(verdict: Verdict, sound: Mapping[str, Judged], folder: Path, path: Path) -> None:
    """Write records with recomputed rows, pictures, and verdicts as an output folder that a leaderboard can read.

    Such a folder is kept apart from own runs: what somebody else made must never be found by a store.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "verdicts").is_dir():
            raise PersbenchError(f"{folder} is not empty and holds no submissions; extract into a folder of its own")
        taken = next((name for name in sound if (folder / "records" / f"{name}.json").exists()), None)
        if taken:
            raise PersbenchError(f"{folder} has a record {taken} already; extract into another folder")
    whole = verdict_dict(verdict, path)
    submission = {name: whole[name] for name in ("file", "sha256", "persbench")}
    for name, judged in sound.items():
        evidence = judged.evidence()
        for label, key in judged.record["pictures"].items():
            target = folder / "store" / "generate" / key
            if not target.is_dir():
                target.mkdir(parents=True)
                pictures.save(evidence.sets[label].pictures, target, "picture")
        protect = judged.record["stages"].get("protect")
        if protect and evidence.released is not evidence.published:
            target = folder / "store" / "protect" / protect["key"]
            target.mkdir(parents=True, exist_ok=True)
            pictures.save(evidence.released, target, judged.cell.subject)
        record = {**judged.record, "rows": [asdict(row) for row in judged.rows]}
        write_atomically(folder / "verdicts" / f"{name}.json", json.dumps(whole["records"][name] | submission, indent=1, sort_keys=True))
        write_atomically(folder / "records" / f"{name}.json", json.dumps(record, indent=1, sort_keys=True))
