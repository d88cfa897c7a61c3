"""Custom Diffusion: what the denoiser reads out of the prompt, and the identifier's word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Words
from persbench.diffusion import DiffusionModel

from .training import Adaptation, FineTuning, PriorPreservationConfig, train_tokens


@dataclass(frozen=True)
class CustomDiffusionConfig(PriorPreservationConfig):
    """Defaults of the official example on its two devices, 2 photos each: `--scale_lr` makes 8e-5 of its rate of 1e-5."""

    rate: float = 8e-5
    steps: int = 250
    batch: int = 4


class CustomDiffusion(FineTuning):
    """Keys and values of cross-attention and the token embedding of the identifier, with prior preservation.

    Unlike in the official code the class pictures are generated ones under one prompt (its `finetune_gen`), photos are not resized at
    random, and the first token's keys and values are trained as well.
    """

    Config: ClassVar[type] = CustomDiffusionConfig
    card: ClassVar[Card] = Card(
        "Custom Diffusion",
        paper="Kumari et al., Multi-Concept Customization of Text-to-Image Diffusion",
        venue="CVPR",
        year=2023,
        repository="adobe-research/custom-diffusion",
        controls="fine-tuning of the released model",
        knows="the published photos, the class of the subject, and pictures of that class",
    )
    uses_class_pictures: ClassVar[bool] = True

    def adapt(self, words: Words, model: DiffusionModel, rng: torch.Generator) -> Adaptation:
        tuned = model.clone("unet", "text_encoder")
        read = [weight for name, weight in tuned.unet.named_parameters() if ".attn2.to_k." in name or ".attn2.to_v." in name]
        vectors, merge = train_tokens(tuned, model.identifier_tokens(words.identifier, words.instance_prompt))
        return Adaptation(tuned, [*read, vectors], merge)
