"""GrIDPure: a little diffusion purification of overlapping grids, many times."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure

from .diffpure import purified


@dataclass(frozen=True)
class GridPureConfig:
    """`timestep`, `iterations` and `gamma` of the official command; `grid` by the shorter side: 256 pixels of 512 there."""

    timestep: Annotated[int, Field(ge=0)] = 10
    iterations: Annotated[int, Field(ge=1)] = 20
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.1
    grid: Annotated[float, Field(gt=0, le=1)] = 0.5


def pieces(height: int, width: int, grid: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows (grid, 1) and columns (grid,) of windows half a grid apart, and of one made of the four corners, which few windows see."""
    half = grid // 2
    spans, corners = [], []
    for side in (height, width):
        offsets = sorted({*range(0, side - grid, half), side - grid})
        spans.append([torch.arange(offset, offset + grid) for offset in offsets])
        corners.append(torch.cat([torch.arange(half), torch.arange(side - half, side)]))
    return [(rows[:, None], columns) for rows, columns in [*itertools.product(*spans), tuple(corners)]]


class GridPure(Countermeasure):
    """Overlapping grids of the latents are noised a little and denoised, averaged, blended with what they were, again and again.

    The official code works on pixels with an unconditional model and rounds to 8 bits in each iteration. The adversary here has a latent
    text-to-image model: grids are cut from its latents and see the empty prompt, and the autoencoder is passed once, since going through
    it in every iteration would blur the photo. A grid's side is a multiple of what the denoiser can halve.
    """

    Config: ClassVar[type] = GridPureConfig
    card: ClassVar[Card] = Card(
        "GrIDPure, in latent space",
        paper="Zhao et al., Can Protective Perturbation Safeguard Personal Data from Being Exploited by Stable Diffusion?",
        venue="CVPR",
        year=2024,
        repository="ZhengyueZhao/GrIDPure",
        controls="the photos before personalization",
        knows="the public model",
    )

    @torch.no_grad()
    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        config, model = self.config, adversary.public
        latents = model.encode(photos)
        height, width = latents.shape[-2:]
        unit = 2 ** max(1, len(model.unet.config.block_out_channels) - 1)
        cut = pieces(height, width, min(height, width, max(1, round(config.grid * min(height, width) / unit)) * unit))
        for _ in range(config.iterations):
            found = purified(model, torch.cat([latents[:, :, rows, columns] for rows, columns in cut]), config.timestep, rng)
            total, count = torch.zeros_like(latents), torch.zeros_like(latents[0, 0])
            for (rows, columns), piece in zip(cut, found.split(len(latents)), strict=True):
                total[:, :, rows, columns] += piece
                count[rows, columns] += 1
            latents = (1 - config.gamma) * total / count + config.gamma * latents
        return model.decode(latents)
