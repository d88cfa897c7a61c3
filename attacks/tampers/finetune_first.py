"""Benign fine-tuning before the personalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Tamper, Words
from persbench.diffusion import DiffusionModel, finetune


@dataclass(frozen=True)
class FinetuneFirstConfig:
    """`rate` 1e-5 is that of diffusers' text-to-image example; 500 steps are what the adversary is taken to spend."""

    rate: Annotated[float, Field(gt=0)] = 1e-5
    steps: Annotated[int, Field(ge=1)] = 500
    batch: Annotated[int, Field(ge=1)] = 4
    gradient_checkpointing: bool = False


class FinetuneFirst(Tamper):
    """The whole denoiser is fine-tuned on pictures of all classes under their class prompts, so that it forgets what was put into it.

    The pictures are the public model's own: nobody's subject is among them.
    """

    Config: ClassVar[type] = FinetuneFirstConfig
    card: ClassVar[Card] = Card("Benign fine-tuning first", controls="the released model", knows="the public model")

    def tamper(self, model: DiffusionModel, adversary: Adversary, rng: torch.Generator) -> DiffusionModel:
        config, language = self.config, adversary.language
        tuned = model.clone("unet")
        if config.gradient_checkpointing:
            tuned.unet.enable_gradient_checkpointing()
        with torch.no_grad():
            sets = [model.encode(adversary.class_pictures(noun)) for noun in language.class_nouns]
            states = model.embed([Words("", noun, language.templates[0]).class_prompt for noun in language.class_nouns])
        latents = torch.cat(sets)
        states = states.repeat_interleave(torch.tensor([len(one) for one in sets], device=model.device), dim=0)

        def loss(step: int) -> torch.Tensor:
            rows = torch.randint(len(latents), (config.batch,), generator=rng)
            return tuned.loss(latents[rows], states[rows], rng).mean()

        half = model.precision == "fp16"
        finetune(tuned.unet.parameters(), loss, steps=config.steps, rate=config.rate, description="finetune-first", half=half)
        if config.gradient_checkpointing:
            tuned.unet.disable_gradient_checkpointing()
        return tuned
