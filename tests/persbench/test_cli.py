"""The command line, end to end on a reduced protocol, and its one-line errors."""

from __future__ import annotations

import json
import sys
import time

import pytest

from persbench import cli

pytestmark = pytest.mark.usefixtures("reduced")


def test_a_finished_run_is_sent_to_a_store_that_is_named_later(call, tmp_path, tiny_epsilon) -> None:
    words = ("run", "-q", "--method", "none", "--attack", "none", "--subjects", "ada", "--bystanders", "0", "--base", tiny_epsilon)
    words += ("--output", tmp_path / "here")
    assert call(*words)[0] == 0
    assert call(*words, "--store", f"file://{tmp_path}/bucket")[0] == 0
    (record,) = (tmp_path / "bucket").rglob("record.json")
    assert json.loads(record.read_text())["status"] == "ok"


def test_run_then_leaderboard(call, tmp_path, tiny_epsilon) -> None:
    common = ("--base", tiny_epsilon, "--output", tmp_path)
    words = ("run", "--method", "persguard-target", "--method", "random-noise", "--attack", "lora", "--subjects", "ada,boris", *common)
    code, out, err = call(*words)
    assert code == 0, err
    assert "How well did persguard-target hold under lora?" in out
    for word in ("persguard-target", "random-noise", "ada", "boris", "records:", "pictures:"):
        assert word in out
    assert "[1/4] persguard-target · lora · ada" in err  # plain progress where there is no terminal
    records = sorted((tmp_path / "records").glob("*.json"))
    assert len(records) == 4, out
    assert all((tmp_path / "store").glob("record/*/pictures.png"))
    began = time.perf_counter()
    code, again, err = call(*words, "-q")
    assert (code, again, err) == (0, out, "")
    assert time.perf_counter() - began < 5
    board = tmp_path / "site" / "board.json"
    code, out, err = call("leaderboard", "--output", tmp_path, "--export", board, "--site", tmp_path / "pages")
    assert code == 0, err
    assert "random-noise" in out
    assert "not Stable Diffusion numbers" in out
    found = {line["method"]: line["threat_model"] for line in json.loads(board.read_text())["measured"]}
    assert found == {"persguard-target": "model", "random-noise": "image"}
    assert "perturbation, 8 times" in (tmp_path / "pages" / "methods" / "random-noise.html").read_text()
    code, out, err = call("compare", "persguard-target", "random-noise", "--output", tmp_path)
    untrained = "no subject, attack and seed in common" in err  # a random model learns nobody: all cells are void
    assert code == 0 or untrained, err


def test_options_reach_the_plugin_that_has_them(call, tmp_path, tiny_epsilon) -> None:
    words = ("run", "--method", "random-noise", "--subjects", "ada", "--base", tiny_epsilon, "--output", tmp_path)
    code, _, err = call(*words, "-o", "rank=2", "-o", "random-noise.budget_levels=5")
    assert code == 0, err
    record = json.loads(next((tmp_path / "records").glob("*.json")).read_text())
    assert record["cell"]["options"] == [["lora", [["rank", "2"]]], ["random-noise", [["budget_levels", "5"]]]]
    assert max(row["value"] for row in record["rows"] if row["metric"] == "linf_levels") == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--method", "persgard-target"), "unknown method 'persgard-target'; did you mean 'persguard-target'?"),
        (("run", "--method", "none", "--attack", "lorra"), "did you mean 'lora'"),
        (("run", "--method", "none", "--track", "avatar"), "did you mean 'avatars'"),
        (("run", "--method", "none", "--subjects", "adda"), "unknown subject or list 'adda'; did you mean 'ada'?"),
        (("run", "--method", "none", "-o", "rnk=3"), "no plug-in of this run has an option 'rnk'"),
        (("run", "--method", "none", "-o", "rank"), "write -o key=value"),
        (("run", "--method", "none", "-o", "rank=many"), "option rank of lora"),
        (("run", "--method", "none", "--seeds", "a"), "not whole numbers"),
        (("run", "--method", "none", "--budget", "300"), "not between 0 and 255"),
        (("run", "--method", "none", "--precision", "int4"), "there are: fp32, fp16, bf16"),
        (("leaderboard", "--output", "nowhere"), "run something first"),
        (("leaderboard", "--export", "board.xls"), "the suffix must be one of .csv, .json, .md, .parquet, .tex"),
        (("compare", "aspl", "imma", "--output", "nowhere"), "run something first"),
        (("list", "method"), "did you mean 'methods'"),
    ],
)
def test_errors_are_one_line_and_name_the_fix(call, words, message) -> None:
    code, _, err = call(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_photo_that_cannot_be_read_is_named(monkeypatch, call, tmp_path, tiny_epsilon) -> None:
    from persbench.tracks.avatars import Avatars

    bad = tmp_path / "published-0.png"
    bad.write_bytes(b"not a picture")
    original = Avatars.subjects

    def subjects(self):
        first, *rest = original(self)
        return (type(first)(first.name, first.class_noun, first.role, (bad,), first.references, first.spares), *rest)

    monkeypatch.setattr(Avatars, "subjects", subjects)
    words = ("run", "--method", "random-noise", "--subjects", "ada", "--base", tiny_epsilon, "--output", tmp_path / "out", "-q")
    code, out, err = call(*words)
    assert code == 1
    assert "published-0.png cannot be read" in out.replace("\n", "")
    assert "Traceback" not in out + err


@pytest.mark.usefixtures("plugin")
@pytest.mark.filterwarnings("ignore:.*does not import")
def test_a_failing_cell_does_not_stop_the_others(call, tmp_path, tiny_epsilon) -> None:
    words = ("run", "--method", "raises", "--method", "none", "--subjects", "ada", "--base", tiny_epsilon, "--output", tmp_path, "-q")
    code, out, _ = call(*words)
    assert code == 0
    assert "out of luck" in out
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert {record["cell"]["method"]: record["status"] for record in records} == {"raises": "error", "none": "ok"}
    assert "out of luck" in next(record["reason"] for record in records if record["status"] == "error")


def test_debug_shows_the_traceback(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(
        sys, "argv", ["persbench", "run", "--method", "none", "--base", str(tmp_path / "no"), "--output", str(tmp_path), "--debug"]
    )
    with pytest.raises(Exception, match="is not a folder"):
        cli.main()
