"""Stores in object storage: what one machine makes another one finds, whatever dies in between."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path

import pytest
from rich.console import Console

from persbench.cli.run import execute
from persbench.pipeline import mirror
from persbench.pipeline.mirror import Mirror
from persbench.pipeline.specfile import specification
from persbench.pipeline.store import MANIFEST, Place, Store, StoreError, store_of

CONTENT = {"stage": "protect", "method": {"name": "fsmg"}}


@pytest.fixture
def url() -> str:
    """A folder of object storage that nobody else has."""
    return f"memory://{uuid.uuid4().hex}"


def build(folder: Path) -> dict:
    (folder / "ada-0.png").write_bytes(b"picture")
    (folder / "weights.safetensors").write_bytes(b"weights")
    return {"cost": {"seconds": 1.0, "peak_mib": 2.0}}


def never(folder: Path) -> dict:
    raise AssertionError("it is there already")


def test_another_machine_finds_what_was_made(tmp_path, url) -> None:
    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    made = one.get("protect", CONTENT, build)
    key = made.folder.name
    assert two.has("protect", key)
    assert two.keys("protect") == {key}
    assert two.peek("protect", key).manifest == made.manifest
    assert not (tmp_path / "two" / "protect" / key).exists()  # nobody has read it yet
    found = two.get("protect", CONTENT, never)
    assert found.manifest == made.manifest
    assert found.path("ada-0.png").read_bytes() == b"picture"
    assert two.built == []
    assert two.leftovers() == []
    assert Place(*two.place).open().find("protect", key)


def test_what_was_made_before_there_was_a_url_is_sent_when_it_is_used(tmp_path, url) -> None:
    key = Store(tmp_path / "one").get("protect", CONTENT, build).folder.name
    assert Mirror(tmp_path / "two", url).find("protect", key) is None
    assert Mirror(tmp_path / "one", url).find("protect", key)
    assert Mirror(tmp_path / "two", url).find("protect", key)


def test_a_machine_that_dies_while_it_sends_leaves_nothing_that_is_read(tmp_path, url, monkeypatch) -> None:
    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    with monkeypatch.context() as patch:
        patch.setattr(one.files, "pipe_file", lambda *words, **named: 1 / 0 if words[0].endswith(MANIFEST) else None)
        with pytest.raises(StoreError, match=f"cannot use the store {url}: division by zero; run again when it can be reached"):
            one.get("protect", CONTENT, build)
    assert two.keys("protect") == set()
    assert two.get("protect", CONTENT, build).manifest
    assert two.built


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("name", ["ada-0.png", MANIFEST])
def test_damage_is_noticed_reported_and_repaired(tmp_path, url, name) -> None:
    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    key = one.get("protect", CONTENT, build).folder.name
    one.files.pipe_file(one._there("protect", key, name), b"{}")
    with pytest.warns(UserWarning, match=f"protect {key[:12]} is damaged in {url} .*{name}"):
        assert two.find("protect", key) is None
    two.get("protect", CONTENT, build)
    three = Mirror(tmp_path / "three", url)
    assert three.get("protect", CONTENT, never).path("ada-0.png").read_bytes() == b"picture"


def test_damage_of_the_copy_here_is_fetched_again(tmp_path, url) -> None:
    one = Mirror(tmp_path / "one", url)
    made = one.get("protect", CONTENT, build)
    made.path("ada-0.png").write_bytes(b"pictura")
    with pytest.warns(UserWarning, match="is damaged"):
        assert one.get("protect", CONTENT, never).path("ada-0.png").read_bytes() == b"picture"


def test_names_that_leave_the_folder_are_not_followed(tmp_path, url) -> None:
    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    made = one.get("protect", CONTENT, build)
    manifest = {**made.manifest, "files": {"../../evil.png": "0" * 64}}
    manifest.pop("checksum")
    one.files.pipe_file(one._there("protect", made.folder.name, MANIFEST), json.dumps(manifest).encode())
    with pytest.warns(UserWarning, match="is damaged"):
        assert two.find("protect", made.folder.name) is None
    assert not [*tmp_path.rglob("evil.png")]


def test_dropped_and_removed_artefacts_are_so_everywhere(tmp_path, url) -> None:
    one, two, three = (Mirror(tmp_path / name, url) for name in ("one", "two", "three"))
    key = one.get("protect", CONTENT, build).folder.name
    assert two.drop("protect", key, {".safetensors"}) == 0  # nothing of it was here
    found = three.find("protect", key)
    assert found.lacks({".safetensors"})
    assert not found.path("weights.safetensors").exists()
    assert three.get("protect", CONTENT, build, {".safetensors"}).path("weights.safetensors").exists()
    assert not Mirror(tmp_path / "four", url).find("protect", key).lacks({".safetensors"})
    three.remove("protect", key)
    assert Mirror(tmp_path / "five", url).find("protect", key) is None


def test_two_machines_make_a_stage_once(tmp_path, url, monkeypatch) -> None:
    monkeypatch.setattr(mirror, "POLL", 0.02)
    begun, times = threading.Event(), []

    def slow(folder: Path) -> dict:
        times.append(1)
        begun.set()
        threading.Event().wait(0.3)
        return build(folder)

    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    other = threading.Thread(target=one.get, args=("protect", CONTENT, slow))
    other.start()
    begun.wait()
    assert two.get("protect", CONTENT, slow).path("ada-0.png").exists()
    other.join()
    assert len(times) == 1
    assert one.files.find(one._there("locks")) == []


def test_the_lock_of_a_dead_machine_is_taken_and_that_of_a_living_one_is_not(tmp_path, url, monkeypatch) -> None:
    monkeypatch.setattr(mirror, "POLL", 0.02)
    monkeypatch.setattr(mirror, "BEAT", 0.05)
    monkeypatch.setattr(mirror, "LEASE", 0.4)
    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    key = one.get("protect", CONTENT, build).folder.name
    one.remove("protect", key)
    one.files.pipe_file(one._there("locks", f"protect-{key}"), b"somebody who was killed 3")
    assert two.get("protect", CONTENT, build).path("ada-0.png").exists()
    two.remove("protect", key)
    order = []
    inside = threading.Event()

    def hold() -> None:
        with one._leased("protect", key):
            inside.set()
            threading.Event().wait(1.0)  # longer than a lease
            order.append("one")

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    with two._leased("protect", key):
        order.append("two")
    holder.join()
    assert order == ["one", "two"]


def test_the_output_folder_remembers_where_its_store_is(tmp_path, url) -> None:
    assert store_of(tmp_path / "a", url).place == Place(str(tmp_path / "a" / "store"), url)
    assert isinstance(store_of(tmp_path / "a"), Mirror)
    assert store_of(tmp_path / "b", str(tmp_path / "shared")).root == tmp_path / "shared"
    assert store_of(tmp_path / "b").root == tmp_path / "shared"
    assert store_of(tmp_path / "c").place == Place(str(tmp_path / "c" / "store"))
    with pytest.raises(StoreError, match="cannot use nowhere://x as store: Protocol not known: nowhere"):
        store_of(tmp_path / "d", "nowhere://x")


def test_a_second_machine_computes_nothing_again(tmp_path, tiny_epsilon) -> None:
    common = {"methods": ["random-noise"], "attacks": ["none"], "subjects": ["ada"], "bases": [str(tiny_epsilon)], "bystanders": 0}
    common |= {"store": f"file://{tmp_path}/bucket", "quiet": True}
    common["protocol"] = {"prompts": ["a photo of {}"], "pictures_per_prompt": 1, "inference_steps": 1, "prior_pictures": 1}
    texts = []
    for output, how in ((tmp_path / "one", {"workers": 2, "threads": 1}), (tmp_path / "two", {"workers": 0})):
        (result,) = execute(specification(None, common | how | {"output": output}), Console(stderr=True))
        texts.append(result.path.read_text("utf-8"))
    assert texts[0] == texts[1]
    assert [path.parent.parent.name for path in (tmp_path / "two" / "store").rglob(MANIFEST)] == ["record"]  # nothing else was needed


def test_amazon_s3(tmp_path, monkeypatch) -> None:
    moto = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    try:
        with pytest.raises(StoreError, match="cannot use the store s3://nobodys"):
            Mirror(tmp_path / "none", "s3://nobodys/folder").get("protect", CONTENT, build)
        s3fs.S3FileSystem().mkdir("bench")
        one, two = Mirror(tmp_path / "one", "s3://bench/runs"), Mirror(tmp_path / "two", "s3://bench/runs")
        made = one.get("protect", CONTENT, build)
        assert two.get("protect", CONTENT, never).manifest == made.manifest
        with two._leased("protect", "key"), pytest.raises(FileExistsError):  # S3 creates exclusively
            one.files.pipe_file(one._there("locks", "protect-key"), b"me too", mode="create")
        two.drop("protect", made.folder.name, {".safetensors"})
        assert Mirror(tmp_path / "three", "s3://bench/runs").find("protect", made.folder.name).lacks({".safetensors"})
        two.remove("protect", made.folder.name)
        assert Mirror(tmp_path / "four", "s3://bench/runs").find("protect", made.folder.name) is None
    finally:
        server.stop()


def test_what_another_machine_made_a_moment_ago_is_found(tmp_path, url) -> None:
    one, two = Mirror(tmp_path / "one", url), Mirror(tmp_path / "two", url)
    assert two.keys("protect") == set()  # a list that is believed for a while
    key = one.get("protect", CONTENT, build).folder.name
    assert two.find("protect", key)
