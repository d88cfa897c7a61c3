"""IMPRESS: a photo that the autoencoder gives back as it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from persbench.metrics.lpips import lpips_network
from pydantic import Field
from torch.nn.functional import interpolate

from persbench.contracts import Adversary, Card, Countermeasure
from persbench.progress import steps

SMALLEST = 64  # pixels a side below which LPIPS is given an enlarged picture


@dataclass(frozen=True)
class ImpressConfig:
    """Numbers of the official script for fine-tuning; `rate`, `noise` and the loss are of pixels in [-1, 1], as published."""

    rate: Annotated[float, Field(gt=0)] = 0.01
    iterations: Annotated[int, Field(ge=1)] = 3000
    alpha: Annotated[float, Field(ge=0)] = 0.1  # weight of the perceptual distance
    epsilon: Annotated[float, Field(ge=0)] = 0.1  # perceptual distance from the given photo that costs nothing
    noise: Annotated[float, Field(ge=0)] = 0.1  # standard deviation of where the search starts


class Impress(Countermeasure):
    """The photo is optimised until the public model's autoencoder returns it unchanged, and stays near by LPIPS.

    Clean photos survive the autoencoder and protected ones do not: min |x - D(E(x))|^2 + alpha max(LPIPS(x, given) - epsilon, 0), by
    Adam with a cosine schedule, for each photo on its own. The official code measures LPIPS with VGG weights; this does with AlexNet.
    """

    Config: ClassVar[type] = ImpressConfig
    card: ClassVar[Card] = Card(
        "IMPRESS",
        paper="Cao et al., IMPRESS: Evaluating the Resilience of Imperceptible Perturbations Against Unauthorized Data Usage in "
        "Diffusion-Based Generative AI",
        venue="NeurIPS",
        year=2023,
        repository="AAAAAAsuka/Impress",
        controls="the photos before personalization",
        knows="the public model's autoencoder",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        config, model = self.config, adversary.public
        photos = photos.to(model.device)
        lpips = copy.deepcopy(lpips_network()).to(model.device)  # metrics use the original where it is
        enlarge = max(1.0, SMALLEST / min(photos.shape[-2:]))

        def seen(pictures: torch.Tensor) -> torch.Tensor:
            return pictures if enlarge == 1 else interpolate(pictures, scale_factor=enlarge, mode="bilinear")

        # In [0, 1] everything of [-1, 1] is half as large: rate and noise here, squares by 4 and Adam's epsilon below.
        found = (photos + model.noise(photos.shape, rng) * config.noise / 2).requires_grad_(True)
        optimizer = torch.optim.Adam([found], lr=config.rate / 2, eps=2e-5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations, eta_min=1e-5 / 2)
        for _ in steps(range(config.iterations), "impress"):
            consistency = 4 * (model.decode(model.encode(found)) - found).square().mean(dim=(1, 2, 3))
            distance = (lpips(seen(found), seen(photos)) - config.epsilon).clamp(min=0)
            optimizer.zero_grad(set_to_none=True)
            (consistency + config.alpha * distance).sum().backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                found.clamp_(0, 1)
        return found.detach()
