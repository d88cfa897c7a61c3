"""AdverseCleaner: bilateral and guided filters, many times."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from scipy.ndimage import uniform_filter
from torch.nn.functional import pad

from persbench.contracts import Adversary, Card, Countermeasure


@dataclass(frozen=True)
class AdverseCleanerConfig:
    """Numbers of the official script. `colour_sigma` and the root of `epsilon` are in 8-bit levels, everything else in pixels."""

    bilateral_steps: Annotated[int, Field(ge=0)] = 64
    diameter: Annotated[int, Field(ge=1)] = 5
    colour_sigma: Annotated[float, Field(gt=0)] = 8.0
    space_sigma: Annotated[float, Field(gt=0)] = 8.0
    guided_steps: Annotated[int, Field(ge=0)] = 4
    radius: Annotated[int, Field(ge=1)] = 4
    epsilon: Annotated[float, Field(gt=0)] = 16.0


def bilateral(pictures: torch.Tensor, diameter: int, colour_sigma: float, space_sigma: float) -> torch.Tensor:
    """Bilateral filter (Tomasi and Manduchi, ICCV 1998) of (N, C, H, W), with OpenCV's choices.

    The neighbourhood is a disc, the distance of colours the sum over channels, borders are mirrored.
    """
    radius, (height, width) = diameter // 2, pictures.shape[-2:]
    wide = pad(pictures, (radius,) * 4, mode="reflect")
    total, weights = torch.zeros_like(pictures), torch.zeros_like(pictures[:, :1])
    for y, x in itertools.product(range(-radius, radius + 1), repeat=2):
        if y * y + x * x > radius * radius:
            continue
        near = wide[..., radius + y : radius + y + height, radius + x : radius + x + width]
        colour = (near - pictures).abs().sum(1, keepdim=True) / colour_sigma
        weight = torch.exp(-(colour.square() + (y * y + x * x) / space_sigma**2) / 2)
        total, weights = total + weight * near, weights + weight
    return total / weights


def guided(guide: torch.Tensor, pictures: torch.Tensor, radius: int, epsilon: float) -> torch.Tensor:
    """Guided filter with a colour guide (He, Sun and Tang, ECCV 2010, section 3.4), borders as in OpenCV; both (N, 3, H, W)."""

    def mean(values: torch.Tensor) -> torch.Tensor:
        sides = (1,) * (values.ndim - 2) + (2 * radius + 1,) * 2
        return torch.from_numpy(uniform_filter(values.cpu().numpy(), sides, mode="reflect")).to(values)

    def covariance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3, 3), of the channels in each window."""
        found = mean(first[:, :, None] * second[:, None]) - mean(first)[:, :, None] * mean(second)[:, None]
        return found.permute(0, 3, 4, 1, 2)

    slopes = torch.linalg.solve(covariance(guide, guide) + epsilon * torch.eye(3).to(guide), covariance(guide, pictures))
    slopes = slopes.permute(0, 3, 4, 1, 2)
    offsets = mean(pictures) - (slopes * mean(guide)[:, :, None]).sum(1)
    return (mean(slopes) * guide[:, :, None]).sum(1) + mean(offsets)


class AdverseCleaner(Countermeasure):
    """Bilateral filter 64 times, then four times a guided filter whose guide is the photo as it was.

    Official code calls OpenCV; this is the same arithmetic without it.
    """

    Config: ClassVar[type] = AdverseCleanerConfig
    card: ClassVar[Card] = Card(
        "AdverseCleaner",
        year=2023,
        repository="lllyasviel/AdverseCleaner",
        controls="the photos before personalization",
        knows="nothing",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        config: AdverseCleanerConfig = self.config
        # Double precision: nearly flat windows make the guided filter's covariances nearly singular.
        guide = cleaned = photos.double() * 255
        for _ in range(config.bilateral_steps):
            cleaned = bilateral(cleaned, config.diameter, config.colour_sigma, config.space_sigma)
        for _ in range(config.guided_steps):
            cleaned = guided(guide, cleaned, config.radius, config.epsilon)
        return (cleaned / 255).clamp(0, 1).float()
