"""DiffusionGuard's loss: the first denoising step is led to predict as much noise as it can.

    max_d E_eps || eps_theta(z_T(x + d), T, "") ||_2   subject to   || d ||_inf <= budget,

with T the first timestep of inference (Choi et al., ICLR 2025, early-stage loss). Defaults of the official code: 8 levels (16/255 for
pixels in [-1, 1]), 800 steps of half a level, no random start, T the first of 4 steps. Differences, since it protects against
inpainting and this suite against personalization: there the network sees pure noise and, beside it, the latent of the masked photo;
a text-to-image model sees the photo in its noised latent only. Masks and their augmentation fall away. Where the network predicts
velocity, its noise is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Ascent, Objective, PerturbationConfig


@dataclass(frozen=True)
class DiffusionGuardConfig(PerturbationConfig):
    """`inference_steps` of a sampler, the first of which is attacked."""

    budget_levels: float = 8.0
    steps: int = 800
    step_levels: float = 0.5
    inference_steps: int = 4


class DiffusionGuard(Ascent):
    """DiffusionGuard: raises the norm of the noise that the denoiser predicts early in sampling."""

    Config: ClassVar[type] = DiffusionGuardConfig
    card: ClassVar[Card] = Card(
        "DiffusionGuard (early-stage loss)",
        paper="Choi et al., DiffusionGuard: A Robust Defense Against Malicious Diffusion-based Image Editing",
        venue="ICLR",
        year=2025,
        repository="choi403/DiffusionGuard",
        controls="the published photos",
        knows="the public model; no words",
    )
    starts_at_random: ClassVar[bool] = False

    def objective(self, subject: Subject, base: DiffusionModel, rng: torch.Generator) -> Objective:
        from diffusers import DDIMScheduler

        sampler = DDIMScheduler.from_config(base.schedule.config)
        sampler.set_timesteps(self.config.inference_steps, device=base.device)
        with torch.no_grad():
            empty = base.embed([""])

        def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
            latents = base.encode(photos, rng)
            first = sampler.timesteps[:1].expand(len(latents))
            noisy = base.add_noise(latents, base.noise(latents.shape, rng), first)
            return base.predicted_noise(noisy, first, empty.expand(len(latents), -1, -1)).flatten(1).norm(dim=1).sum()

        return objective
