"""Low-rank adaptation of the denoiser, and of the text encoder if told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Card, Words
from persbench.diffusion import DiffusionModel

from .training import Adaptation, FineTuning, FineTuningConfig

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_FEEDFORWARD = ["ff.net.0.proj", "ff.net.2"]
_CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "time_emb_proj"]
TARGETS = {
    "attention": _ATTENTION,
    "attention+feedforward": _ATTENTION + _FEEDFORWARD,
    "all": _ATTENTION + _FEEDFORWARD + _CONVOLUTIONS,
}
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@dataclass(frozen=True)
class LoraConfig(FineTuningConfig):
    """Defaults of the DreamBooth-LoRA example of diffusers, which papers of this field take over (rank 4 to 32)."""

    rate: float = 1e-4
    steps: int = 500
    batch: int = 4
    rank: int = 16
    alpha: float = 16.0
    targets: Literal["attention", "attention+feedforward", "all"] = "attention"
    text_encoder: bool = False  # adapters on its attention too


class Lora(FineTuning):
    """Adapters (peft) on the denoiser, trained on the photos under the instance prompt, then merged into the weights."""

    Config: ClassVar[type] = LoraConfig
    card: ClassVar[Card] = Card(
        "Low-rank adaptation (LoRA)",
        paper="Hu et al., ICLR 2022; with the instance prompt of DreamBooth (Ruiz et al., CVPR 2023)",
        year=2022,
        repository="huggingface/peft",
        controls="fine-tuning of the released model",
        knows="the published photos and the class of the subject",
    )

    def adapt(self, words: Words, model: DiffusionModel, rng: torch.Generator) -> Adaptation:
        import peft

        config: LoraConfig = self.config
        targets = {"unet": TARGETS[config.targets]} | ({"text_encoder": TEXT_TARGETS} if config.text_encoder else {})
        tuned = model.clone(*targets)
        # peft draws its initial weights from the global generator: seed a copy of it and put the original back.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
            for part, names in targets.items():
                settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names)
                setattr(tuned, part, peft.get_peft_model(getattr(tuned, part), settings))

        def merge() -> None:
            for part in targets:
                setattr(tuned, part, getattr(tuned, part).merge_and_unload())

        adapters = [weight for part in targets for name, weight in getattr(tuned, part).named_parameters() if "lora_" in name]
        return Adaptation(tuned, adapters, merge)
