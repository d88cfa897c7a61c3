"""Low-rank adaptation of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Adversary, Card, Personalizer, Words
from persbench.diffusion import DiffusionModel, finetune

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_FEEDFORWARD = ["ff.net.0.proj", "ff.net.2"]
_CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "time_emb_proj"]
TARGETS = {
    "attention": _ATTENTION,
    "attention+feedforward": _ATTENTION + _FEEDFORWARD,
    "all": _ATTENTION + _FEEDFORWARD + _CONVOLUTIONS,
}


@dataclass(frozen=True)
class LoraConfig:
    """Defaults of the DreamBooth-LoRA example of diffusers, which papers of this field take over (rank 4 to 32)."""

    rank: int = 16
    alpha: float = 16.0
    rate: float = 1e-4
    steps: int = 500
    batch: int = 4
    targets: Literal["attention", "attention+feedforward", "all"] = "attention"
    gradient_checkpointing: bool = False


class Lora(Personalizer):
    """LoRA (peft) on the denoiser, trained on the photos under the instance prompt, then merged into the weights."""

    Config: ClassVar[type] = LoraConfig
    card: ClassVar[Card] = Card(
        "Low-rank adaptation (LoRA)",
        paper="Hu et al., ICLR 2022; with the instance prompt of DreamBooth (Ruiz et al., CVPR 2023)",
        year=2022,
        repository="huggingface/peft",
        controls="fine-tuning of the released model",
        knows="the published photos and the class of the subject",
    )

    def personalize(
        self, photos: torch.Tensor, words: Words, model: DiffusionModel, adversary: Adversary, rng: torch.Generator
    ) -> DiffusionModel:
        import peft

        config: LoraConfig = self.config
        tuned = model.clone("unet")
        settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=TARGETS[config.targets])
        # peft draws its initial weights from the global generator: seed a copy of it and put the original back.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
            wrapped = peft.get_peft_model(tuned.unet, settings)
        tuned.unet = wrapped
        if config.gradient_checkpointing:
            wrapped.get_base_model().enable_gradient_checkpointing()
        with torch.no_grad():
            latents = model.encode(photos)
            states = model.embed([words.instance_prompt])

        def loss(step: int) -> torch.Tensor:
            rows = torch.randperm(len(latents), generator=rng)
            rows = rows.repeat(-(-config.batch // len(rows)))[: config.batch]
            return tuned.loss(latents[rows], states.expand(len(rows), -1, -1), rng).mean()

        adapters = [parameter for name, parameter in wrapped.named_parameters() if "lora_" in name]
        finetune(adapters, loss, steps=config.steps, rate=config.rate, description="lora", half=model.precision == "fp16")
        tuned.unet = wrapped.merge_and_unload()
        return tuned
