"""Cross-attention attack: photos and the keys and values of the denoiser's cross-attention are moved against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel
from persbench.progress import steps as progress_steps

from .perturbation import CROSS_ATTENTION_KEYS_AND_VALUES, Perturbation, PerturbationConfig, Surrogate, denoising_loss, project


@dataclass(frozen=True)
class CAATConfig(PerturbationConfig):
    """CAAT's `train_CAAT.sh`: budget 0.05 and step 0.005 for pixels in [-1, 1], 250 steps, AdamW at 1e-5."""

    budget_levels: float = 6.375
    steps: int = 250
    step_levels: float = 0.6375
    surrogate_rate: float = 1e-5


class CAAT(Perturbation):
    """Photos go up the denoising loss while the keys and values of cross-attention go down the very same loss.

        L = E ||eps_theta(z_t(x'), t, "a photo of a class") - eps||^2
        x' <- project(x' + step * sign(grad_x' L)),    W_K, W_V <- AdamW(grad_W L)          at once, from one evaluation

    Source: CAAT (arXiv 2404.15081) and its official code. No difference from that code in the rule without prior preservation; the
    identifier is in neither's prompt, so that the method need not know it.
    """

    Config: ClassVar[type] = CAATConfig
    card: ClassVar[Card] = Card(
        "Perturbing cross-attention (CAAT)",
        paper="Perturbing Attention Gives You More Bang for the Buck: Subtle Imaging Perturbations That Efficiently Fool Customized "
        "Diffusion Models (Xu et al.)",
        venue="CVPR",
        year=2024,
        repository="CO2-cityao/CAAT",
        controls="the published photos",
        knows="the base model and the class word",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: CAATConfig = self.config
        surrogate = Surrogate(base, subject.words, rate=config.surrogate_rate, trained=CROSS_ATTENTION_KEYS_AND_VALUES)
        with torch.no_grad():
            states = base.embed([subject.words.class_prompt])
        objective, photos = denoising_loss(surrogate.model, states, rng), subject.photos
        with surrogate.learning():
            for number in progress_steps(range(config.steps), "caat"):
                photos = photos.detach().requires_grad_(True)
                surrogate.descend(objective(photos, number))  # one backward pass gives both gradients
                assert photos.grad is not None
                photos = project(photos.detach() + self.step(radius) * photos.grad.sign(), subject.photos, radius)
        return photos
