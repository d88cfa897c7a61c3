"""PhotoGuard's encoder attack: the encoder is led to see nothing in the photo.

    min_d || mu(x + d) ||_2   subject to   || d ||_inf <= budget

with mu the mean of the encoder's posterior: the target latent is zero. Salman et al., ICML 2023, section 3.1, with the target, budget
(0.06 for pixels in [-1, 1]), step (0.02, falling along a line to a hundredth of it), 1,000 steps and random start of the demonstration
of the official code. Not from there: it computes in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Objective, Perturbation, PerturbationConfig, ascend, random_start


@dataclass(frozen=True)
class PhotoGuardEncoderConfig(PerturbationConfig):
    """Defaults of the official demonstration; `step_levels` is the first step."""

    budget_levels: float = 7.65
    steps: int = 1000
    step_levels: float = 2.55


class PhotoGuardEncoder(Perturbation):
    """PhotoGuard, encoder attack: moves the latent of the photo towards zero."""

    Config: ClassVar[type] = PhotoGuardEncoderConfig
    card: ClassVar[Card] = Card(
        "PhotoGuard (encoder attack)",
        paper="Salman et al., Raising the Cost of Malicious AI-Powered Image Editing",
        venue="ICML",
        year=2023,
        repository="MadryLab/photoguard",
        controls="the published photos",
        knows="the encoder of the public model; no words",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        photos, steps, first = subject.photos, self.config.steps, self.step(radius)
        return ascend(
            towards_zero(base),
            random_start(photos, radius, rng),
            around=photos,
            radius=radius,
            step=lambda number: first - (first - first / 100) * number / steps,
            steps=steps,
            description="photoguard-encoder",
        )


def towards_zero(model: DiffusionModel) -> Objective:
    """Minus the length of each photo's mean latent, summed."""
    return lambda photos, step: -model.encode(photos).flatten(1).norm(dim=1).sum()
