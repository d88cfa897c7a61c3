"""Through the autoencoder and back."""

from __future__ import annotations

from typing import ClassVar

import torch

from persbench.contracts import Adversary, Card, Countermeasure


class VaeRoundtrip(Countermeasure):
    """Each photo is encoded by the public model's autoencoder (the mean, no noise) and decoded again."""

    card: ClassVar[Card] = Card(
        "Autoencoder round trip",
        controls="the photos before personalization",
        knows="the public model",
    )

    @torch.no_grad()
    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        return adversary.public.decode(adversary.public.encode(photos))
