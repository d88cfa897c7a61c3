"""No personalization."""

from __future__ import annotations

from typing import ClassVar

import torch

from persbench.contracts import Adversary, Card, Personalizer, Words
from persbench.diffusion import DiffusionModel


class NoPersonalization(Personalizer):
    """The floor: the released model is never fine-tuned and is asked for the class alone."""

    card: ClassVar[Card] = Card("No personalization", controls="nothing", knows="the class of the subject")
    trains: ClassVar[bool] = False

    def personalize(
        self, photos: torch.Tensor, words: Words, model: DiffusionModel, adversary: Adversary, rng: torch.Generator
    ) -> DiffusionModel:
        return model
