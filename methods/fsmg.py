"""Fully-trained surrogate model guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import DreamBoothSurrogateConfig, Perturbation, Surrogate, ascend, denoising_loss


@dataclass(frozen=True)
class FSMGConfig(DreamBoothSurrogateConfig):
    """Anti-DreamBooth's `attack_with_fsmg.sh`: budget 0.05 and step 0.005 for pixels in [-1, 1], 100 steps."""

    budget_levels: float = 6.375
    steps: int = 100
    step_levels: float = 0.6375
    surrogate_steps: int = 1000  # of DreamBooth on the clean photos
    surrogate_batch: int = 2


class FSMG(Perturbation):
    """Photos on which a model that has fully learned the clean ones has a high DreamBooth loss.

        theta' = DreamBooth(theta0, x)
        x' = argmax_{|x' - x| <= radius} E ||eps_theta'(z_t(x'), t, "V* class") - eps||^2         by signed gradient steps

    Source: Anti-DreamBooth, section 4.2, and its official code. Differences from that code: the surrogate learns the photos that are
    protected, not a second clean set of the subject; weights are fp32 (official: bf16 in the attack); the latents of the surrogate's
    photos are drawn once, not at each step.
    """

    Config: ClassVar[type] = FSMGConfig
    card: ClassVar[Card] = Card(
        "Fully-trained surrogate model guidance (FSMG)",
        paper="Anti-DreamBooth: Protecting users from personalized text-to-image synthesis (Van Le et al.)",
        venue="ICCV",
        year=2023,
        repository="VinAIResearch/Anti-DreamBooth",
        controls="the published photos",
        knows="the base model, the personalizer's loss, the identifier and the class word",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: FSMGConfig = self.config
        surrogate = Surrogate.dreambooth(subject.words, base, config, rng, config.surrogate_batch)
        surrogate.train(subject.photos, config.surrogate_steps, rng, "fsmg: surrogate")
        return ascend(
            denoising_loss(surrogate.model, surrogate.states(), rng),
            subject.photos,
            around=subject.photos,
            radius=radius,
            step=self.step(radius),
            steps=config.steps,
            description="fsmg",
        )
