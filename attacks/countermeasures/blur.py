"""Gaussian blur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from scipy.ndimage import gaussian_filter

from persbench.contracts import Adversary, Card, Countermeasure
from persbench.errors import PersbenchError


@dataclass(frozen=True)
class BlurConfig:
    """`kernel`: pixels a side, odd; its standard deviation is the one that torchvision gives to that size."""

    kernel: Annotated[int, Field(ge=1)] = 5


class Blur(Countermeasure):
    """Gaussian blur with a kernel of a given size, borders mirrored."""

    Config: ClassVar[type] = BlurConfig
    card: ClassVar[Card] = Card("Gaussian blur", controls="the photos before personalization", knows="nothing")

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        if self.config.kernel % 2 == 0:
            raise PersbenchError(f"the kernel of blur is {self.config.kernel}; give an odd number")
        radius = self.config.kernel // 2
        sigma = 0.3 * (radius - 1) + 0.8
        blurred = gaussian_filter(photos.cpu().numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))
        return torch.from_numpy(blurred).clamp(0, 1)
