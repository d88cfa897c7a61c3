"""Mist: AdvDM's semantic loss together with a latent that is led to a target picture.

    min_d || z(x + d) - z(y) ||^2 - rate * L(x + d)   subject to   || d ||_inf <= budget,

with L the denoising loss and y the target (Liang and Wu, 2023). Defaults of the official code: rate 10,000 on a sum over latent
values, 16 levels, 100 steps of 1 level, random start, prompt "a photo" (its setting for objects). Differences: the target is a band of
white bars on black in place of the project's logo, which is such a picture; z(y) is the mean, not a draw of the posterior (the same in
expectation); both losses see the same draw of z(x + d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Ascent, Objective, PerturbationConfig


@dataclass(frozen=True)
class MistConfig(PerturbationConfig):
    """`rate`: weight of the denoising loss, a mean over latent values, against the distance from the target, a sum over them."""

    budget_levels: float = 16.0
    steps: int = 100
    step_levels: float = 1.0
    rate: float = 1e4
    prompt: str = "a photo"


class Mist(Ascent):
    """Mist: raises the denoising loss and moves the latent of the photo to that of a target picture."""

    Config: ClassVar[type] = MistConfig
    card: ClassVar[Card] = Card(
        "Mist",
        paper="Liang and Wu, Mist: Towards Improved Adversarial Examples for Diffusion Models, arXiv 2305.12683",
        year=2023,
        repository="psyker-team/mist",
        controls="the published photos",
        knows="the public model; no words",
    )

    def objective(self, subject: Subject, base: DiffusionModel, rng: torch.Generator) -> Objective:
        with torch.no_grad():
            states, target = base.embed([self.config.prompt]), base.encode(bars(*subject.photos.shape[-2:]))

        def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
            latents = base.encode(photos, rng)
            semantic = base.loss(latents, states.expand(len(latents), -1, -1), rng).sum()
            return semantic - (latents - target).square().sum() / self.config.rate

        return objective


def bars(height: int, width: int) -> torch.Tensor:
    """The target (1, 3, H, W): white bars on black, in a band over the middle fifth."""
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    band = (rows > 0.4) & (rows < 0.6)
    bar = (columns > 0.15) & (columns < 0.85) & ((columns * 20).floor() % 2 == 1)
    return (band[:, None] & bar).float().expand(1, 3, -1, -1)
