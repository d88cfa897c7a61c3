"""Alternating surrogate and perturbation learning, alone, towards a target picture, or against several base models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from persbench import pictures
from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel
from persbench.progress import steps as progress_steps

from .perturbation import DreamBoothSurrogateConfig, Objective, Perturbation, Surrogate, ascend, denoising_loss


@dataclass(frozen=True)
class AlternatingConfig(DreamBoothSurrogateConfig):
    """Anti-DreamBooth's `attack_with_aspl.sh`: budget 0.05 and step 0.005 for pixels in [-1, 1]; 50 rounds of 3, 6 and 3 steps."""

    budget_levels: float = 6.375
    steps: int = 6  # of the perturbation, each round
    step_levels: float = 0.6375
    rounds: int = 50
    surrogate_steps: int = 3  # on the clean photos, and then on the perturbed ones, each round


@dataclass(frozen=True)
class ASPLConfig(AlternatingConfig):
    """`target`: a picture file to which the perturbed photos are denoised (T-ASPL). `ensemble`: folders of further base models (E-ASPL)."""

    target: str = ""
    ensemble: tuple[str, ...] = ()


class ASPL(Perturbation):
    """Photos with a high DreamBooth loss for a surrogate that goes on learning them as they are perturbed.

    Each round, from the surrogate's weights theta and the perturbed photos x':

        theta' = theta after a few DreamBooth steps on the clean photos x
        x' <- project(x' + step * sign(grad_x' E ||eps_theta'(z_t(x'), t, "V* class") - eps||^2))        a few times
        theta <- theta after a few DreamBooth steps on x'

    With a target picture y the loss is ||eps_theta'(z_t(x')) - eps||^2 - ||z_{t-1}(x'; theta') - z_{t-1}(y)||^2, where the first z_{t-1}
    is one denoising step and the second noise added to y. With an ensemble the perturbed photos are the mean of each model's.

    Source: Anti-DreamBooth, section 4.3, and its official code. Differences from that code: the clean photos are those that are
    protected, not a second set of the subject; each surrogate step takes a random photo and a random picture of the class (official: the
    first of either, as each call starts anew); weights are fp32 (official: bf16, in which steps of 5e-7 mostly round to nothing); the
    latents of the surrogate's photos are drawn once a call; the target's noise at t = 0 is that of t = 0 (official: index -1, the last).
    """

    Config: ClassVar[type] = ASPLConfig
    card: ClassVar[Card] = Card(
        "Alternating surrogate and perturbation learning (ASPL)",
        paper="Anti-DreamBooth: Protecting users from personalized text-to-image synthesis (Van Le et al.)",
        venue="ICCV",
        year=2023,
        repository="VinAIResearch/Anti-DreamBooth",
        controls="the published photos",
        knows="the base model, the personalizer's loss, the identifier and the class word",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: ASPLConfig = self.config
        bases = [base, *(DiffusionModel.load(Path(folder), base.precision, str(base.device)) for folder in config.ensemble)]
        target = pictures.read([Path(config.target)], base.picture_size).to(base.device) if config.target else None

        def attack(surrogate: Surrogate, photos: torch.Tensor) -> torch.Tensor:
            model, states = surrogate.model, surrogate.states()
            objective = denoising_loss(model, states, rng) if target is None else targeted_loss(model, states, target, rng)
            return ascend(objective, photos, around=subject.photos, radius=radius, step=self.step(radius), steps=config.steps)

        surrogates = [Surrogate.dreambooth(subject.words, each, config, rng) for each in bases]
        return alternate(surrogates, subject.photos, config, attack, rng, "aspl")


def alternate(
    surrogates: Sequence[Surrogate],
    clean: torch.Tensor,
    config: AlternatingConfig,
    attack: Callable[[Surrogate, torch.Tensor], torch.Tensor],
    rng: torch.Generator,
    description: str,
    forget_clean: bool = True,
) -> torch.Tensor:
    """The rounds: each surrogate learns the clean photos, `attack(surrogate, photos)` perturbs them, the surrogate learns the result.

    `forget_clean`: what it learned from the clean photos is only for the attack. Returns the mean over surrogates, (N, 3, H, W).
    """
    photos = clean
    for _ in progress_steps(range(config.rounds), description):
        perturbed = []
        for surrogate in surrogates:
            before = surrogate.snapshot() if forget_clean else []
            surrogate.restart()
            surrogate.train(clean, config.surrogate_steps, rng)
            perturbed.append(attack(surrogate, photos))
            if forget_clean:
                surrogate.restore(before)
            else:
                surrogate.restart()
            surrogate.train(perturbed[-1], config.surrogate_steps, rng)
        photos = torch.stack(perturbed).mean(dim=0)
    return photos


def targeted_loss(model: DiffusionModel, states: torch.Tensor, target: torch.Tensor, rng: torch.Generator) -> Objective:
    """The denoising loss minus the distance of one denoising step from `target` (1, 3, H, W) noised to there."""
    with torch.no_grad():
        aim = model.encode(target, rng)

    def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
        latents = model.encode(photos, rng)
        noise, timesteps = model.noise(latents.shape, rng), model.timesteps(len(latents), rng)
        noisy = model.add_noise(latents, noise, timesteps)
        predicted = model.predict(noisy, timesteps, states.expand(len(latents), -1, -1))
        denoised = [
            model.schedule.step(predicted[i : i + 1], timestep, noisy[i : i + 1], generator=rng).prev_sample
            for i, timestep in enumerate(timesteps.tolist())
        ]
        wanted = model.add_noise(aim.expand_as(latents), noise, (timesteps - 1).clamp_min(0))
        loss = (predicted - model.target(latents, noise, timesteps)).square().mean()
        return loss - (torch.cat(denoised) - wanted).square().mean()

    return objective
