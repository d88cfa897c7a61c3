"""DreamBooth: the whole denoiser learns the photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Words
from persbench.diffusion import DiffusionModel

from .training import Adaptation, FineTuning, PriorPreservationConfig


@dataclass(frozen=True)
class DreamBoothConfig(PriorPreservationConfig):
    """Defaults of the DreamBooth example of diffusers, which sets the rate to 2e-6 where the text encoder is trained too."""

    rate: float = 5e-6
    steps: int = 800
    batch: int = 1
    text_encoder: bool = False


class DreamBooth(FineTuning):
    """All weights of the denoiser, and of the text encoder if told, with prior preservation."""

    Config: ClassVar[type] = DreamBoothConfig
    card: ClassVar[Card] = Card(
        "DreamBooth",
        paper="Ruiz et al., DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
        venue="CVPR",
        year=2023,
        repository="huggingface/diffusers",
        controls="fine-tuning of the released model",
        knows="the published photos, the class of the subject, and pictures of that class",
    )
    uses_class_pictures: ClassVar[bool] = True

    def adapt(self, words: Words, model: DiffusionModel, rng: torch.Generator) -> Adaptation:
        parts = ("unet", "text_encoder") if self.config.text_encoder else ("unet",)
        tuned = model.clone(*parts)
        return Adaptation(tuned, [parameter for part in parts for parameter in getattr(tuned, part).parameters()])
