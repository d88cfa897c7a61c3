"""Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure


@dataclass(frozen=True)
class NoiseConfig:
    """`deviation`: the noise's standard deviation, of pixels in [0, 1]."""

    deviation: Annotated[float, Field(ge=0)] = 0.05


class Noise(Countermeasure):
    """Independent Gaussian noise on every pixel and channel, to drown a perturbation."""

    Config: ClassVar[type] = NoiseConfig
    card: ClassVar[Card] = Card("Gaussian noise", controls="the photos before personalization", knows="nothing")

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        return (photos + self.config.deviation * torch.randn(photos.shape, generator=rng)).clamp(0, 1)
