"""Prompt-agnostic perturbation: the prompt is a random variable around the one that explains the photo best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .perturbation import Objective, Perturbation, PerturbationConfig, ascend


@dataclass(frozen=True)
class PAPConfig(PerturbationConfig):
    """PAP's `pap.sh` and `papv2.py`: budget 0.05 and step 1/255 for pixels in [-1, 1], 5 times 10 steps, 20 prompt steps at rate 1000."""

    budget_levels: float = 6.375
    steps: int = 50
    step_levels: float = 0.5
    prompt_steps: int = 20
    prompt_rate: float = 1000.0


class PAP(Perturbation):
    """Photos with a high denoising loss under prompts drawn around the best one, by Laplace's approximation.

    From the text states c0 of "a photo of V* class", at the same noisy latent z_t(x'):

        c^ = c0 after gradient descent on L(c) = ||eps_theta0(z_t(x'), t, c) - eps||^2
        c ~ N(c^, v I),   v = ||c0 - c^||^2 / (2 |L(c0) - L(c^)| d)      the curvature that explains the fall of L, over d values
        x' <- project(x' + step * sign(grad_x' ||eps_theta0(z_t(x'), t, c) - eps||^2))

    Source: PAP (arXiv 2408.10571) and the official `papv2.py`. Differences from that code, which is a reading aid (`papv1.py` does not
    parse): it takes v^2 where a normal distribution's deviation belongs, here that is the square root of v; v is found for each photo,
    not for the batch; no gradient flows through c^ and v (official: through their last use).
    """

    Config: ClassVar[type] = PAPConfig
    card: ClassVar[Card] = Card(
        "Prompt-agnostic adversarial perturbation (PAP)",
        paper="Prompt-Agnostic Adversarial Perturbation for Customized Diffusion Models (Wan et al.)",
        venue="NeurIPS",
        year=2024,
        repository="vancyland/Prompt-Agnostic-Adversarial-Perturbation-for-Customized-Diffusion-Models.github.io",
        controls="the published photos",
        knows="the base model and a prompt near the adversary's",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: PAPConfig = self.config
        with torch.no_grad():
            states = base.embed([subject.words.instance_prompt])
        objective = prompt_agnostic_loss(base, states, config.prompt_steps, config.prompt_rate, rng)
        return ascend(
            objective,
            subject.photos,
            around=subject.photos,
            radius=radius,
            step=self.step(radius),
            steps=config.steps,
            description="pap",
        )


def prompt_agnostic_loss(model: DiffusionModel, states: torch.Tensor, steps: int, rate: float, rng: torch.Generator) -> Objective:
    """The denoising loss under text states drawn from the Laplace approximation around `states` (1, L, D)."""

    def objective(photos: torch.Tensor, number: int) -> torch.Tensor:
        latents = model.encode(photos, rng)
        noise, timesteps = model.noise(latents.shape, rng), model.timesteps(len(latents), rng)
        noisy, target = model.add_noise(latents, noise, timesteps), model.target(latents, noise, timesteps)

        def losses(prompt: torch.Tensor, noisy: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (model.predict(noisy, timesteps, prompt) - target).square().mean(dim=(1, 2, 3))

        fixed = noisy.detach(), target.detach()
        prompt = laplace(lambda prompt: losses(prompt, *fixed), states.expand(len(latents), -1, -1), steps, rate, rng)
        return losses(prompt, noisy, target).mean()

    return objective


def laplace(
    losses: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, steps: int, rate: float, rng: torch.Generator
) -> torch.Tensor:
    """A draw (N, L, D) from N(c^, v I) for each row of `states` (N, L, D), where `losses(states)` is (N,)."""
    with torch.no_grad():
        before = losses(states)
    best = states.detach()
    for _ in range(steps):
        best = best.requires_grad_(True)
        best = (best - rate * torch.autograd.grad(losses(best).mean(), best)[0]).detach()
    with torch.no_grad():
        fall = (before - losses(best)).abs()
        variance = (states - best).square().mean(dim=(1, 2)) / (2 * fall).clamp_min(1e-12)
    return best + variance.sqrt().view(-1, 1, 1) * torch.randn(best.shape, generator=rng).to(best.device)
