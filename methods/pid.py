"""PID: prompt-independent defense, on the encoder alone.

    max_d MSE(mu(x + d), mu(x)) + MSE(log sigma^2(x + d), log sigma^2(x))   subject to   || d ||_inf <= budget,

with mu and sigma^2 of the encoder's posterior, not scaled (Li et al., ICML 2024). The loss is `add-log` of the official code, as is
the rest: 12.75 levels (0.05), 1,000 steps of 1 level, random start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Ascent, Objective, PerturbationConfig


@dataclass(frozen=True)
class PIDConfig(PerturbationConfig):
    """Defaults of the official script."""

    budget_levels: float = 12.75
    steps: int = 1000
    step_levels: float = 1.0


class PID(Ascent):
    """PID: moves mean and log-variance of the photo's latent away from where they were."""

    Config: ClassVar[type] = PIDConfig
    card: ClassVar[Card] = Card(
        "PID",
        paper="Li et al., PID: Prompt-Independent Data Protection Against Latent Diffusion Models",
        venue="ICML",
        year=2024,
        repository="PKU-ML/Diffusion-PID-Protection",
        controls="the published photos",
        knows="the encoder of the public model; no words",
    )

    def objective(self, subject: Subject, base: DiffusionModel, rng: torch.Generator) -> Objective:
        with torch.no_grad():
            clean = base.posterior(subject.photos)

        def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
            mean, log_variance = base.posterior(photos)
            return (mean - clean[0]).square().mean() + (log_variance - clean[1]).square().mean()

        return objective
