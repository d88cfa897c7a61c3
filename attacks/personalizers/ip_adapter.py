"""IP-Adapter: a photo as a prompt; nothing is tuned."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from persbench.contracts import Adversary, Card, Personalizer, Words
from persbench.diffusion import DiffusionModel
from persbench.errors import SkippedCell


class IPAdapter(Personalizer):
    """A picture prompt beside the text, without fine-tuning; not available for any base model yet."""

    card: ClassVar[Card] = Card(
        "IP-Adapter",
        paper="Ye et al., IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
        venue="arXiv",
        year=2023,
        repository="tencent-ailab/IP-Adapter",
        controls="the prompt of the released model",
        knows="the published photos and the class of the subject",
    )

    def missing(self, base: Path) -> str:
        return "IP-Adapter needs an image encoder and an adapter trained for the base model; this one comes without them"

    def personalize(
        self, photos: torch.Tensor, words: Words, model: DiffusionModel, adversary: Adversary, rng: torch.Generator
    ) -> DiffusionModel:
        raise SkippedCell(self.missing(Path()))
