"""Shared pieces of the tests: tiny Stable Diffusion folders, a reduced track, and the third-party package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from persbench import registry

PLUGIN = Path(__file__).parent / "plugin"
BROKEN = {"broken"}  # of that package: does not import
# Options of plug-ins that say how much they do, and how much that is in tests.
SMALL = {
    **dict.fromkeys(("steps", "warmup_steps", "rehearsal_steps", "away_steps", "marker_steps", "iterations", "interval", "pool_steps"), 2),
    **dict.fromkeys(("surrogate_steps", "rounds", "prompt_steps", "class_inference_steps", "trials", "advance_steps"), 1),
    **dict.fromkeys(("pool", "others_pool", "pictures", "class_pictures", "simulated_steps", "search_candidates"), 1),
    "search_keep": 900,
}


@pytest.fixture(scope="session", autouse=True)
def one_process() -> None:
    """Commands work in the tests' own process, unless a test asks for workers; tests that run side by side take a thread each."""
    torch.set_flush_denormal(True)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of commands in processes of their own
    os.environ["PERSBENCH_WORKERS"] = "0"


def tiny_pipeline(folder: Path, prediction_type: str) -> Path:
    """A random Stable Diffusion of a few thousand weights: SD 1 (epsilon, conv projections) or SD 2 (v-prediction, linear ones)."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from persbench.tracks.avatars.build.captions import save_tokenizer

    second = prediction_type == "v_prediction"
    save_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                sample_size=32,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=24,
                    hidden_act="gelu" if second else "quick_gelu",
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            ),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                block_out_channels=(8, 16),
                layers_per_block=1,
                cross_attention_dim=16,
                attention_head_dim=2,
                norm_num_groups=4,
                use_linear_projection=second,
            ),
            scheduler=DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type=prediction_type,
                clip_sample=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def tiny_base(request, tmp_path_factory) -> Path:
    """A tiny base model of each prediction type."""
    return tiny_pipeline(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def tiny_epsilon(tmp_path_factory) -> Path:
    """A tiny base model that predicts noise."""
    return tiny_pipeline(tmp_path_factory.mktemp("epsilon-only"), "epsilon")


@pytest.fixture
def adversary(tiny_base):
    """What an adversary has besides the release, around the tiny base model: two clean photos and two pictures of each class."""
    from persbench.contracts import Adversary
    from persbench.diffusion import DiffusionModel
    from persbench.tracks.avatars import Avatars

    def noise(seed: int) -> torch.Tensor:
        return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))

    return Adversary(DiffusionModel.load(tiny_base), noise(7), Avatars.language, lambda noun: noise(len(noun)))


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command as its entry point does: exit code, standard output, standard error."""
    from persbench import cli

    def called(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["persbench", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "250")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return called


@pytest.fixture
def reduced(monkeypatch) -> None:
    """The `avatars` track with a protocol of seconds: few pictures, two steps; the code paths are the real ones."""
    from persbench.tracks.avatars import Avatars

    short: dict[str, dict] = {name: dict(options) for name, options in Avatars.protocol.options.items()}
    for kind in ("methods", "countermeasures", "tampers", "personalizers"):
        for name in registry.names(kind):
            known = registry.option_names(kind, name) if name not in BROKEN else set()
            short.setdefault(name, {}).update({key: value for key, value in SMALL.items() if key in known})
    protocol = replace(
        Avatars.protocol,
        prompts=Avatars.protocol.prompts[:1],
        pictures_per_prompt=2,
        inference_steps=2,
        bystanders=1,
        prior_pictures=1,
        class_pictures=2,
        options=short,
    )
    monkeypatch.setattr(Avatars, "protocol", protocol)


@pytest.fixture(scope="session")
def installed_plugin(tmp_path_factory) -> Path:
    """The third-party package of tests/plugin, really installed, into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    source = shutil.copytree(PLUGIN, tmp_path_factory.mktemp("source") / "plugin")  # setuptools writes beside what it builds
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return target


@pytest.fixture
def plugin(installed_plugin, monkeypatch) -> None:
    """The third-party package is there, for this test."""
    monkeypatch.syspath_prepend(str(installed_plugin))
    registry._found.cache_clear()
    yield
    registry._found.cache_clear()


@pytest.fixture(scope="session")
def finished(tiny_epsilon, tmp_path_factory) -> Path:
    """The output folder of a finished run on the tiny model, with everything kept: an image-level and a model-level method. Copy it."""
    from persbench.pipeline.spec import Cell
    from persbench.pipeline.stages import Pipeline
    from persbench.pipeline.store import Store

    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        reduced.__wrapped__(patch)
        run = Pipeline("avatars", str(tiny_epsilon), Store(output / "store"))
        (output / "records").mkdir()
        for method in ("random-noise", "persguard-target"):
            artefact = run.plan(Cell("avatars", str(tiny_epsilon), method, "lora", "ada", 0)).run(run.store)
            record = artefact.path("record.json").read_text()
            assert all(row["value"] is not None for row in json.loads(record)["rows"])
            (output / "records" / f"{method}.json").write_text(record)
    return output


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
