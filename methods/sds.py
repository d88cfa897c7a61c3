"""Score distillation sampling as a protection: the denoiser is not differentiated.

    g = (eps_theta(z_t, t, c) - eps) dz / dx,   x <- x - sign(g) * step  (minus)   or   x + sign(g) * step  (plus);
    targeted: x <- x + sign(-+ rate * g - d/dx || z - z(y) ||^2) * step,

with z = z(x) and y a target picture (Xue et al., ICLR 2024: SDS(-), SDS(+), SDST). Minus, which makes the photo blander to the
denoiser, is what the paper recommends. Defaults of the official code: minus, 16 levels, 100 steps of 1 level, no random start, prompt
"a photo", rate 5. Differences: the target is that of `mist` here; z(y) is the mean and z(x) one draw a step, where the code draws
each anew. Where the network predicts velocity, its noise is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .mist import bars
from .perturbation import Ascent, Objective, PerturbationConfig


@dataclass(frozen=True)
class SDSConfig(PerturbationConfig):
    """`rate`: weight of the score against the distance from the target, where `targeted`."""

    budget_levels: float = 16.0
    steps: int = 100
    step_levels: float = 1.0
    direction: Literal["minus", "plus"] = "minus"
    targeted: bool = False
    rate: float = 5.0
    prompt: str = "a photo"


class SDS(Ascent):
    """SDS: goes down (or up) the score distillation gradient, through the encoder alone; optionally towards a target picture."""

    Config: ClassVar[type] = SDSConfig
    card: ClassVar[Card] = Card(
        "SDS protection",
        paper="Xue et al., Toward Effective Protection against Diffusion-Based Mimicry through Score Distillation",
        venue="ICLR",
        year=2024,
        repository="xavihart/Diff-Protect",
        controls="the published photos",
        knows="the public model; no words",
    )
    starts_at_random: ClassVar[bool] = False

    def objective(self, subject: Subject, base: DiffusionModel, rng: torch.Generator) -> Objective:
        config: SDSConfig = self.config
        way = 1.0 if config.direction == "plus" else -1.0
        with torch.no_grad():
            states, target = base.embed([config.prompt]), base.encode(bars(*subject.photos.shape[-2:]))

        def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
            latents = base.encode(photos, rng)
            with torch.no_grad():
                noise, timesteps = base.noise(latents.shape, rng), base.timesteps(len(latents), rng)
                noisy = base.add_noise(latents, noise, timesteps)
                score = base.predicted_noise(noisy, timesteps, states.expand(len(latents), -1, -1)) - noise
            distilled = way * (score * latents).mean()  # its gradient is the score times dz / dx
            return config.rate * distilled - (latents - target).square().mean() if config.targeted else distilled

        return objective
