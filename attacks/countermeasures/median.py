"""Median filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from scipy.ndimage import median_filter

from persbench.contracts import Adversary, Card, Countermeasure


@dataclass(frozen=True)
class MedianConfig:
    """`window`: pixels a side."""

    window: Annotated[int, Field(ge=1)] = 3


class Median(Countermeasure):
    """Each pixel becomes the median of its neighbourhood, channel by channel, borders repeated."""

    Config: ClassVar[type] = MedianConfig
    card: ClassVar[Card] = Card(
        "Median smoothing",
        paper="Xu, Evans and Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
        venue="NDSS",
        year=2018,
        controls="the photos before personalization",
        knows="nothing",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        side = self.config.window
        return torch.from_numpy(median_filter(photos.cpu().numpy(), size=(1, 1, side, side), mode="nearest"))
