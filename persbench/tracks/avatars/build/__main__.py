"""Build the `avatars` track: `python -m persbench.tracks.avatars.build --work FOLDER`.

Every stage keeps its result in the work folder and its training in checkpoints, so the same command goes on after a stop. Stages
that do not need each other can run side by side: `--stage denoiser` in one shell, `--stage judges` in another.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import captions, dataset, subjects

PACKAGE = Path(__file__).parent.parent


class Build:
    """The stages of the build on one work folder."""

    def __init__(self, work: Path) -> None:
        self.work, self.checkpoints = work, work / "checkpoints"

    def stages(self) -> dict[str, Callable[[], None]]:
        """All stages, in an order that works."""
        return {
            "pictures": self.pictures,
            "tokenizer": self.tokenizer,
            "lpips": self.lpips,
            "vae": self.vae,
            "judges": self.judges,
            "denoiser": self.denoiser,
            "subjects": self.subjects,
            "export": self.export,
            "report": self.report,
        }

    def pictures(self) -> None:
        """Draw the training and held-out pictures (about 4 minutes)."""
        dataset.draw(self.work / "pictures")

    def tokenizer(self) -> None:
        captions.save_tokenizer(self.work / "tokenizer")

    def lpips(self) -> None:
        """Convert the published LPIPS weights."""
        from persbench.metrics import lpips

        from .lpips_weights import convert

        convert(Path(lpips.__file__).parent / lpips.WEIGHTS)

    def vae(self) -> None:
        """The autoencoder (about 25 minutes), then the latents of all training pictures."""
        from . import vae

        train = dataset.load(self.work / "pictures", "train")
        model = vae.fit(train, self.checkpoints)
        model.save_pretrained(self.work / "vae")
        save_file({"latents": vae.encode(model, train).contiguous()}, self.work / "latents.safetensors")

    def judges(self) -> None:
        """Two identity embedders and the text-image model (about 30 minutes)."""
        from persbench.tracks.avatars.evaluators import JUDGES

        from . import evaluators

        train = dataset.load(self.work / "pictures", "train")
        versions = [torch.from_numpy(train.pixels), evaluators.damaged(train, seed=5)]
        (self.work / "judges").mkdir(exist_ok=True)
        for judge in JUDGES:
            network = evaluators.fit_identity(judge, train, versions, self.checkpoints)
            save_file(network.state_dict(), self.work / "judges" / f"{judge}.safetensors")
        model = evaluators.fit_text_image(train, versions, self._tokenizer(), self.checkpoints)
        save_file(model.state_dict(), self.work / "judges" / "text-image.safetensors")

    def denoiser(self) -> None:
        """Denoiser and text encoder together (hours on two cores)."""
        from diffusers import AutoencoderKL

        from . import denoiser

        train = dataset.load(self.work / "pictures", "train")
        factor = AutoencoderKL.load_config(self.work / "vae")["scaling_factor"]
        model = denoiser.fit(self._latents() * factor, train, self._tokenizer(), self.checkpoints)
        model.unet.save_pretrained(self.work / "unet")
        model.text_encoder.save_pretrained(self.work / "text_encoder")

    def subjects(self) -> None:
        """Draw the subjects into the package."""
        subjects.draw(PACKAGE / "subjects")

    def export(self) -> None:
        """Write model and judges into the package, in fp16."""
        from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
        from transformers import CLIPTextModel

        from .denoiser import scheduler

        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(self.work / "vae", use_safetensors=True),
            text_encoder=CLIPTextModel.from_pretrained(self.work / "text_encoder", use_safetensors=True),
            tokenizer=self._tokenizer(),
            unet=UNet2DConditionModel.from_pretrained(self.work / "unet", use_safetensors=True),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        shutil.rmtree(PACKAGE / "model", ignore_errors=True)
        pipeline.to(torch.float16).save_pretrained(PACKAGE / "model")
        for name in ("vocab.json", "merges.txt"):  # what tools without the fast tokenizer read
            shutil.copy(self.work / "tokenizer" / name, PACKAGE / "model" / "tokenizer" / name)
        for path in (PACKAGE / "model").rglob("config.json"):  # where this machine kept the parts is nobody's business
            settings = json.loads(path.read_text("utf-8"))
            settings.pop("_name_or_path", None)
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
        (PACKAGE / "judges").mkdir(exist_ok=True)
        for path in (self.work / "judges").glob("*.safetensors"):
            halves = {name: tensor.half().contiguous() for name, tensor in load_file(path).items()}
            save_file(halves, PACKAGE / "judges" / path.name)

    def report(self) -> None:
        """Measure the track as it lies in the package and write report.json."""
        from .report import measure

        found = measure(dataset.load(self.work / "pictures", "heldout"), store=self.work / "store")
        (PACKAGE / "report.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        print(json.dumps(found, indent=1))

    def _latents(self) -> torch.Tensor:
        return load_file(self.work / "latents.safetensors")["latents"]

    def _tokenizer(self):  # type: ignore[no-untyped-def]
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")


def main() -> None:
    """Read the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures, checkpoints and intermediate weights")
    parser.add_argument("--stage", action="append", help="only this stage; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    stages = Build(given.work).stages()
    for name in given.stage or stages:
        print(f"== {name}", flush=True)
        stages[name]()


if __name__ == "__main__":
    main()
