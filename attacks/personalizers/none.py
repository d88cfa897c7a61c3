"""No personalization."""

from __future__ import annotations

from typing import ClassVar

import torch

from persbench.contracts import Card, Personalizer, Words
from persbench.diffusion import DiffusionModel


class NoPersonalization(Personalizer):
    """The floor: the released model is never fine-tuned and is asked for the class alone."""

    card: ClassVar[Card] = Card("No personalization", controls="nothing", knows="the class of the subject")
    trains = False

    def personalize(self, photos: torch.Tensor, words: Words, model: DiffusionModel, rng: torch.Generator) -> DiffusionModel:
        return model
