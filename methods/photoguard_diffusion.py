"""PhotoGuard's diffusion attack: what the model makes of the photo is led to grey.

    min_d E || f(x + d) - grey ||_2   subject to   || d ||_inf <= budget,

with f encoding, adding noise, a few denoising steps (DDIM, eta 1, empty prompt), and decoding. Salman et al., ICML 2023, section 3.2.
Budget (0.1 for pixels in [-1, 1]), step (0.006), 200 steps and 5 gradients a step are those of the L-infinity variant of the official
notebook; the one that it runs by default keeps to an L2 ball of 16, with 10 gradients a step of length 1. Other differences: the
notebook attacks an inpainting model that starts from noise alone and sees the masked photo beside it. A text-to-image model has no such
input, so here the noised latent of the photo is the start, at half of the schedule (the strength of the notebook's image-to-image
example). Guidance is left out: with the empty prompt both of its terms are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Objective, Perturbation, PerturbationConfig, ascend


@dataclass(frozen=True)
class PhotoGuardDiffusionConfig(PerturbationConfig):
    """`gradients` are averaged in a step; `denoising_steps` lead from the share `strength` of the schedule to a picture."""

    budget_levels: float = 12.75
    steps: int = 200
    step_levels: float = 0.765
    gradients: int = 5
    denoising_steps: int = 4
    strength: float = 0.5


class PhotoGuardDiffusion(Perturbation):
    """PhotoGuard, diffusion attack: moves what the model paints over the photo towards grey."""

    Config: ClassVar[type] = PhotoGuardDiffusionConfig
    card: ClassVar[Card] = Card(
        "PhotoGuard (diffusion attack)",
        paper="Salman et al., Raising the Cost of Malicious AI-Powered Image Editing",
        venue="ICML",
        year=2023,
        repository="MadryLab/photoguard",
        controls="the published photos",
        knows="the public model; no words",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: PhotoGuardDiffusionConfig = self.config
        objective = towards_grey(base, config.denoising_steps, config.strength, rng)
        # One photo at a time: the graph spans all denoising steps and the decoder.
        perturbed = [
            ascend(
                objective,
                photo,
                around=photo,
                radius=radius,
                step=self.step(radius),
                steps=config.steps,
                views=[lambda same: same] * config.gradients,
                description=f"photoguard-diffusion, photo {number + 1} of {len(subject.photos)}",
            )
            for number, photo in enumerate(subject.photos.split(1))
        ]
        return torch.cat(perturbed)


def towards_grey(model: DiffusionModel, denoising_steps: int, strength: float, rng: torch.Generator) -> Objective:
    """Minus the distance from grey of what `denoising_steps` steps from the share `strength` of the schedule make of each photo."""
    from diffusers import DDIMScheduler

    solver = DDIMScheduler.from_config(model.schedule.config)
    solver.set_timesteps(round(denoising_steps / strength), device=model.device)
    times = solver.timesteps[-denoising_steps:]
    with torch.no_grad():
        empty = model.embed([""])

    def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
        latents = model.encode(photos, rng)
        states = empty.expand(len(latents), -1, -1)
        latents = model.add_noise(latents, model.noise(latents.shape, rng), times[:1].expand(len(latents)))
        for time in times:
            predicted = model.predict(latents, time.expand(len(latents)), states)
            fresh = model.noise(latents.shape, rng)
            latents = solver.step(predicted, time, latents, eta=1.0, variance_noise=fresh, return_dict=False)[0]
        return -(model.decode(latents, clamp=False) - 0.5).flatten(1).norm(dim=1).sum()

    return objective
