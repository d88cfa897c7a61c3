"""Submissions: what is packed is believed, and nothing that somebody else made can lie or do harm."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from persbench.errors import PersbenchError
from persbench.pipeline import submission
from persbench.pipeline.store import Store
from persbench.pipeline.submission import Archive, SubmissionError, Verdict, decode_png, pack, record_name, verdict_dict, verify

KEY = "0123456789" * 4
Members = dict[str, bytes]


@pytest.fixture(scope="session")
def packed(finished, tmp_path_factory) -> Path:
    """The image-level record of the finished run as a submission."""
    archive = tmp_path_factory.mktemp("submission") / "noise.zip"
    assert pack([finished / "records" / "random-noise.json"], archive) == 1
    return archive


@pytest.fixture
def changed(packed, tmp_path) -> Callable[..., Path]:
    """The submission after a change of its members or of its record, with digests and names that fit again."""

    def change(members: Callable[[Members], None] = lambda _: None, record: Callable[[dict], None] = lambda _: None) -> Path:
        with zipfile.ZipFile(packed) as archive:
            content = {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}
        members(content)
        name = next(name for name in content if name.startswith("records/"))
        text = json.loads(content.pop(name))
        record(text)
        content[f"records/{record_name(text['cell'])}.json"] = json.dumps(text).encode()
        return written(tmp_path / "changed.zip", content)

    return change


def written(path: Path, members: Members, manifest: dict | None = None) -> Path:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    whole = {"format": 1, "persbench": "0.1.0", "files": digests} | (manifest or {})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "manifest.json": json.dumps(whole).encode()}.items():
            archive.writestr(name, data)
    return path


def failure(path: Path) -> str:
    """All reasons why a submission fails."""
    found = verify(path)
    assert found.status == "failed"
    return "\n".join([*found.reasons, *(reason for reasons in found.records.values() for reason in reasons)])


def png(picture: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


# --- honest ones


def test_what_is_packed_is_recomputed_and_extracted(reduced, call, finished, tmp_path) -> None:
    from persbench.leaderboard.aggregate import read_boards

    archive, folder = tmp_path / "all.zip", tmp_path / "others"
    code, out, err = call("submit", "pack", finished / "records", "-o", archive)
    assert code == 0, err
    assert "packed 2 records" in out
    again = tmp_path / "again.zip"
    pack([finished / "records"], again)
    assert archive.read_bytes() == again.read_bytes()
    assert str(finished) not in archive.read_bytes().decode("latin-1")
    with zipfile.ZipFile(archive) as opened:
        records = [json.loads(opened.read(name)) for name in opened.namelist() if name.startswith("records/")]
        assert {record["cell"]["base"] for record in records} == {"model"}  # no path of this machine
        assert {name.partition("/")[0] for name in opened.namelist()} == {"manifest.json", "records", "photos", "pictures"}
    code, out, err = call("verify", archive, "--extract", folder)
    assert code == 0, out + err
    assert "recomputed: 2 records, 0 run again" in out
    verdict = json.loads((tmp_path / "all.zip.verdict.json").read_text())
    assert verdict["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert {record["status"] for record in verdict["records"].values()} == {"recomputed"}
    assert len(read_boards(folder)[0].rows) == 2
    for path in (folder / "records").glob("*.json"):
        record = json.loads(path.read_text())
        own = json.loads((finished / "records" / f"{record['cell']['method']}.json").read_text())
        ours, theirs = ({(r["metric"], r["set"], r["index"]): r["value"] for r in each["rows"]} for each in (record, own))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)  # in batches of another size
        beside = json.loads((folder / "verdicts" / path.name).read_text())
        assert (beside["status"], beside["reasons"], beside["sha256"]) == ("recomputed", [], verdict["sha256"])
        for key in record["pictures"].values():
            ours, theirs = (sorted((root / "store" / "generate" / key).glob("*.png")) for root in (folder, finished))
            assert [decode_png(p.read_bytes(), "").tolist() for p in ours] == [decode_png(p.read_bytes(), "").tolist() for p in theirs]
    with pytest.raises(PersbenchError, match=r"has a record .* already"):
        verify(archive, extract=folder)
    with pytest.raises(PersbenchError, match="extract into a folder of its own"):
        verify(archive, extract=finished)
    # What was extracted is not an artefact of any store.
    assert Store(folder / "store").peek("generate", record["pictures"]["attacked"]) is None


def test_a_sample_is_run_again(reduced, finished, packed, tiny_epsilon, tmp_path) -> None:
    output = shutil.copytree(finished, tmp_path / "out")
    found = verify(packed, rerun=3, base=str(tiny_epsilon), output=output)
    assert (found.status, len(found.rerun)) == ("verified", 1)
    other = verify(packed, rerun=1)  # on the base model of the track
    assert other.status == "failed"
    assert "another base model" in str(other.records)


def test_pictures_that_the_method_did_not_make_are_found_by_running_again(reduced, finished, changed, tiny_epsilon, tmp_path) -> None:
    """Pictures and rows agree with each other, but not with the method."""

    def blacken(members: Members) -> None:
        text = json.loads(next(data for name, data in members.items() if name.startswith("records/")))
        for name in members:
            if name.startswith(f"pictures/{text['pictures']['attacked']}/"):
                members[name] = png(Image.new("RGB", (32, 32)))

    first = verify(changed(blacken), extract=None)
    assert first.status == "failed"
    rows: list[dict] = []
    original = submission.Judged.differences

    def differences(self, tolerance):
        rows.extend({"metric": r.metric, "set": r.set, "index": r.index, "value": r.value, "error": r.error} for r in self.rows)
        return original(self, tolerance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission.Judged, "differences", differences)
        verify(changed(blacken))
    lie = changed(blacken, lambda record: record.update(rows=rows))
    assert verify(lie).status == "recomputed"
    output = shutil.copytree(finished, tmp_path / "out")
    found = verify(lie, rerun=1, base=str(tiny_epsilon), output=output)
    assert found.status == "failed"
    assert "run again, " in str(found.records) and " of attacked is " in str(found.records)


def test_released_weights_can_be_packed_and_dropped_pictures_cannot(reduced, finished, tmp_path) -> None:
    output = shutil.copytree(finished, tmp_path / "out")
    target = output / "records" / "persguard-target.json"
    record = json.loads(target.read_text())
    pack([target], tmp_path / "weights.zip", weights=True)
    key = record["stages"]["protect"]["key"]
    with Archive(tmp_path / "weights.zip") as archive:
        assert archive.names("weights/") == [f"weights/{key}.safetensors"]
        archive.check_weights(f"weights/{key}.safetensors")
    store = Store(output / "store")
    store.drop("protect", key, {".safetensors"})
    with pytest.raises(PersbenchError, match="run its cell again with --keep all"):
        pack([target], tmp_path / "more.zip", weights=True)
    store.drop("generate", record["pictures"]["attacked"], {".png"})
    with pytest.raises(PersbenchError, match="run its cell again with --keep pictures"):
        pack([target], tmp_path / "more.zip")
    assert not (tmp_path / "more.zip").exists()
    (output / "records" / "skipped.json").write_text(json.dumps({"cell": {}, "status": "skipped"}))
    with pytest.raises(PersbenchError, match="no record of a finished cell"):
        pack([output / "records" / "skipped.json"], tmp_path / "more.zip")


# --- dishonest ones


def row(record: dict, metric: str, label: str) -> dict:
    return next(each for each in record["rows"] if (each["metric"], each["set"]) == (metric, label))


def improve(record: dict) -> None:
    row(record, "identity:resnet", "attacked")["value"] -= 0.01


def leave_out_a_row(record: dict) -> None:
    record["rows"].remove(row(record, "detected", "attacked"))


def say_it_twice(record: dict) -> None:
    record["rows"].append(row(record, "detected", "attacked") | {"value": 0.0})


def leave_out_a_bystander(record: dict) -> None:
    record["pictures"] = {label: key for label, key in record["pictures"].items() if not label.startswith("bystander")}


def unknown_row(record: dict) -> None:
    record["rows"].append({"metric": "detected", "set": "dreamt", "index": 0, "value": 0.0, "error": ""})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (improve, "identity:resnet of attacked differs from its pictures in 1 rows"),
        (leave_out_a_row, "detected of attacked differs from its pictures in 1 rows"),
        (unknown_row, "detected of dreamt differs from its pictures in 1 rows"),
        (say_it_twice, "two rows for detected of attacked, picture 0"),
        (leave_out_a_bystander, "its picture sets are not those of its cell"),
        (lambda r: r["protocol"].update(inference_steps=1), r"another protocol of the track \(inference_steps\)"),
        (lambda r: r["protocol"].update(bystanders=0), r"its protocol is not that of the track \(bystanders\)"),
        (lambda r: r.update(margin=0.01), r"its protocol is not that of the track \(margin\)"),
        (lambda r: r.update(evaluators="0" * 40), "scored by other evaluators"),
        (lambda r: r["configs"]["protect"].update(budget_levels=4.0), "random-noise changed a photo by 8 levels; its budget is 4"),
        (lambda r: r["configs"]["protect"].update(budget_levels=None), "random-noise changes photos; the record says otherwise"),
        (lambda r: r["configs"]["protect"].update(budget_levels="8"), "its budget is not a number"),
        (lambda r: r["cell"].update(budget=4.0), "run with a budget of 8 levels and asked for 4"),
        (lambda r: r["cell"].update(subject="nobody"), "unknown subject 'nobody'"),
        (lambda r: r["cell"].update(track="../other"), "unknown track"),
        (lambda r: r["cell"].update(seed="zero"), "no sound cell: seed"),
        (lambda r: r["cell"].update(method="a\x1b[2Jb"), "is no name"),
        (lambda r: r["cell"].update(attack="x" * 1000), "is no name"),
        (lambda r: r["cell"].update(precision="int4"), "unknown precision"),
        (lambda r: r.update(status="error"), "status: Input should be 'ok'"),
        (lambda r: r.pop("stages"), "stages: Field required"),
        (lambda r: r["pictures"].update(attacked="../../etc"), "pictures.attacked: String should match pattern"),
        (lambda r: r["pictures"].update(attacked=KEY), f"there must be .* pictures pictures/{KEY}/...; there are 0"),
        (lambda r: r["rows"][0].update(value=float("nan")), "value: Input should be a finite number"),
        (lambda r: r["rows"][0].update(value="1"), "value: Input should be a valid number"),
        (lambda r: r["rows"][0].update(index=-1), "index: Input should be greater"),
    ],
)
def test_a_record_that_lies_fails(reduced, changed, change, message) -> None:
    import re

    assert re.search(message, failure(changed(record=change)))


def test_pictures_and_photos_that_were_changed_fail(reduced, packed, changed, tmp_path) -> None:
    def grey(start: str) -> Callable[[Members], None]:
        def change(members: Members) -> None:
            members[next(name for name in sorted(members) if name.startswith(start))] = png(Image.new("RGB", (32, 32), "grey"))

        return change

    assert "differs from its pictures" in failure(changed(grey("pictures/")))
    assert "random-noise changed a photo by" in failure(changed(grey("photos/")))

    def one_less(members: Members) -> None:
        del members[next(name for name in sorted(members) if name.startswith("pictures/"))]

    assert "there must be 2 pictures" in failure(changed(one_less)) or "there must be 1 pictures" in failure(changed(one_less))
    with zipfile.ZipFile(packed) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    grey("pictures/")(members)
    assert "does not have the digest of the manifest" in failure(written(tmp_path / "digest.zip", members, manifest))
    name = next(name for name in members if name.startswith("records/"))
    members[f"records/{'0' * 16}.json"] = members.pop(name)
    assert "does not bear the digest of its cell" in failure(written(tmp_path / "name.zip", members))


def test_markup_in_names_stays_text(reduced, call, changed, tmp_path) -> None:
    name = "<script>alert(1)</script>[bold]x[/bold][/]"
    archive = changed(record=lambda record: record["cell"].update(method=name))
    code, out, err = call("verify", archive, "--extract", tmp_path / "others")
    assert code == 0, out + err
    assert name in err  # as text, not obeyed
    verdict = json.loads(Path(f"{archive}.verdict.json").read_text())
    assert [record["cell"] for record in verdict["records"].values()] == [f"{name} · lora · ada"]
    record = json.loads(next((tmp_path / "others" / "records").glob("*.json")).read_text())
    assert record["cell"]["method"] == name


# --- harmful ones: none of these gets as far as a record


def entries(path: Path, *named: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """An archive of exactly these entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in named:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "/etc/passwd",
        f"pictures/{KEY}/../../x.png",
        f"pictures/{KEY}/a/b.png",
        f"pictures\\{KEY}\\x.png",
        "C:\\x.png",
        f"pictures/{KEY}/<script>alert(1)</script>.png",
        f"pictures/{KEY}/a.png\n",
        f"pictures/{KEY}/a.svg",
        f"pictures/{KEY}/",
        "records/index.html",
        "manifest.json/",
    ],
)
def test_entries_that_are_not_of_a_submission_are_refused(tmp_path, name) -> None:
    with pytest.raises(SubmissionError, match="an entry may not be called") as refused:
        Archive(entries(tmp_path / "x.zip", (name, b"")))
    assert "<script>" not in str(refused.value) or name.count("<script>")  # shown as it is, quoted
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [f"weights/{KEY}.pt", "model.ckpt", "weights/pytorch_model.bin", f"weights/{KEY}.pkl"])
def test_pickles_are_refused_by_name(tmp_path, name) -> None:
    with pytest.raises(SubmissionError, match=r"weights are taken as weights/KEY\.safetensors only"):
        Archive(entries(tmp_path / "x.zip", (name, b"")))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Bomb()), "is not safetensors"),
        (torch_file(), "is not safetensors"),
        (b"", "is not safetensors"),
        (struct.pack("<Q", 2**60) + b"{}", "is not safetensors"),
        (save({"a": torch.tensor([float("nan")])}), "not finite"),
    ],
)
def test_weights_are_refused_by_content(tmp_path, data, message) -> None:
    path = written(tmp_path / "x.zip", {f"weights/{KEY}.safetensors": data, f"records/{'0' * 16}.json": b"{}"})
    assert message in failure(path)


def info(name: str, mode: int = stat.S_IFREG | 0o644, compress_type: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr, found.compress_type = mode << 16, compress_type
    return found


PICTURE = f"pictures/{KEY}/picture-000.png"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([(info(PICTURE, stat.S_IFLNK | 0o777), b"/etc/passwd")], "is not a regular file"),
        ([(info(PICTURE, stat.S_IFIFO | 0o644), b"")], "is not a regular file"),
        ([(info(PICTURE, compress_type=zipfile.ZIP_BZIP2), b"x")], "compressed in a way that is not taken"),
        ([(info(PICTURE, compress_type=zipfile.ZIP_LZMA), b"x")], "compressed in a way that is not taken"),
        ([(PICTURE, b"a"), (PICTURE, b"b")], "is in the archive twice"),
        ([(f"records/{'0' * 16}.json", b" " * (2 * 2**20))], "is compressed more than 200 times"),
        ([(info(f"records/{'0' * 16}.json"), b" " * (17 * 2**20))], r"has 17825792 bytes; 16777216 are allowed"),
        ([(PICTURE, b"a")], "the archive has no manifest.json"),
        ([("manifest.json", b"{")], "manifest.json: Invalid JSON"),
        ([("manifest.json", b"[" * 100_000)], "manifest.json: Invalid JSON"),
        ([("manifest.json", json.dumps({"format": 2, "persbench": "1", "files": {}}).encode())], "format: Input should be 1"),
        ([("manifest.json", json.dumps({"format": 1, "persbench": "1", "files": {}}).encode()), (PICTURE, b"")], "in its manifest alone"),
        ([("manifest.json", json.dumps({"format": 1, "persbench": "1", "files": {PICTURE: "0" * 64}}).encode())], "in its manifest alone"),
        ([("manifest.json", json.dumps({"format": 1, "persbench": "1", "files": {}}).encode())], "has no records"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_harmful_archives_are_refused(tmp_path, named, message) -> None:
    assert message in failure(entries(tmp_path / "x.zip", *named))


def test_the_whole_of_an_archive_is_bounded(tmp_path, monkeypatch) -> None:
    names = [f"pictures/{KEY}/picture-{number:03d}.png" for number in range(5)]
    path = entries(tmp_path / "x.zip", *((name, b"x" * 1000) for name in names))
    with monkeypatch.context() as patch:
        patch.setattr(submission, "MAX_TOTAL", 4500)
        assert "the archive has more than 4500 bytes uncompressed" in failure(path)
    monkeypatch.setattr(submission, "MAX_ENTRIES", 3)
    assert "3 entries in a directory of" in failure(path)  # by what the archive says, before its directory is read
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 10 : end + 12] = struct.pack("<H", 2)
    path.write_bytes(data)
    assert "the archive has more than 3 entries" in failure(path)


@pytest.mark.parametrize("wide", [False, True])
def test_a_huge_directory_is_refused_before_it_is_read(tmp_path, wide) -> None:
    path = tmp_path / "x.zip"
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**45, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0 if wide else 60_000, 0 if wide else 2**31, 0, 0)
    path.write_bytes((large + locator if wide else b"") + end)
    assert "entries in a directory of" in failure(path)


def test_an_entry_that_is_not_as_long_as_it_says_is_refused(tmp_path) -> None:
    """Ten declared bytes that inflate to ten mebibytes, and a thousand that are five."""
    for declared, data, message in [(10, b" " * (10 * 2**20), "cannot be decompressed"), (1000, b"     ", "not as long as")]:
        path = entries(tmp_path / "x.zip", ("manifest.json", data))
        raw = bytearray(path.read_bytes())
        raw[22:26] = raw[raw.index(b"PK\1\2") + 24 : raw.index(b"PK\1\2") + 28] = struct.pack("<L", declared)
        path.write_bytes(raw)
        assert message in failure(path)


def test_encrypted_entries_and_other_files_are_refused(tmp_path) -> None:
    path = entries(tmp_path / "x.zip", ("manifest.json", b"{}"))
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    assert "is encrypted" in failure(path)
    path.write_bytes(b"not a zip")
    assert "is not a ZIP archive" in failure(path)
    raw[raw.index(b"PK\1\2")] = 0
    path.write_bytes(raw)
    assert "is not a sound ZIP archive" in failure(path)
    assert "cannot read" in failure(tmp_path / "no.zip")


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it is large."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claims(2000, 8), "2000 × 8 pixels; 1024 a side are allowed"),
        (claims(60_000, 60_000), "60000 × 60000 pixels|cannot be decoded"),
        (jpeg(), "is not a PNG"),
        (pickle.dumps(Bomb()), "is not a PNG"),
        (b"<svg onload=alert(1)>", "is not a PNG"),
        (png(Image.new("L", (4, 4))), "not one picture of 8-bit RGB"),
        (png(Image.new("RGBA", (4, 4))), "not one picture of 8-bit RGB"),
        (png(Image.new("RGB", (4, 4)), save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]), "not one picture"),
        (png(Image.new("RGB", (64, 64), "red"))[:-30], "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    ],
)
def test_pictures_that_are_not_small_pngs_are_refused(data, message) -> None:
    with pytest.raises(SubmissionError, match=message):
        decode_png(data, PICTURE)


def test_a_png_is_read_as_it_was_written() -> None:
    levels = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(decode_png(png(Image.fromarray(levels.permute(1, 2, 0).numpy())), ""), levels)


def test_one_failed_record_fails_the_submission() -> None:
    verdict = Verdict("failed", records={"a": [], "b": ["lies"]}, rerun=["a"])
    found = verdict_dict(verdict, Path("nowhere.zip"))
    assert {name: each["status"] for name, each in found["records"].items()} == {"a": "failed", "b": "failed"}
