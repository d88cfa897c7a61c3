"""AdvDM: adversarial examples for diffusion models.

    max_d E_(t, eps) || eps_theta(z_t(x + d), t, c) - eps ||^2   subject to   || d ||_inf <= budget,

one draw of timestep, noise and latent a step (Liang et al., ICML 2023, algorithm 1). Defaults are those of Diff-Protect
(xavihart/Diff-Protect), in which the field compares it: 16 levels, 100 steps of 1 level, random start, prompt "a photo". Where the
network predicts velocity, the error is that of the velocity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Ascent, Objective, PerturbationConfig, denoising_loss


@dataclass(frozen=True)
class AdvDMConfig(PerturbationConfig):
    """`prompt`: the condition c, which names neither subject nor class."""

    budget_levels: float = 16.0
    steps: int = 100
    step_levels: float = 1.0
    prompt: str = "a photo"


class AdvDM(Ascent):
    """AdvDM: raises the denoising loss of the photo under a prompt that says nothing of it."""

    Config: ClassVar[type] = AdvDMConfig
    card: ClassVar[Card] = Card(
        "AdvDM",
        paper="Liang et al., Adversarial Example Does Good: Preventing Painting Imitation from Diffusion Models",
        venue="ICML",
        year=2023,
        repository="mist-project/mist",
        controls="the published photos",
        knows="the public model; no words",
    )

    def objective(self, subject: Subject, base: DiffusionModel, rng: torch.Generator) -> Objective:
        with torch.no_grad():
            states = base.embed([self.config.prompt])
        return denoising_loss(base, states, rng)
