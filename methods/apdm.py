"""APDM: a model that, while it is personalized, prefers others of the class to the subject (Lee et al., NeurIPS 2025, arXiv 2511.01307).

theta0 is the frozen base model, x- a protected photo, x+ a picture of its class by the base model, c the instance prompt, t and eps shared:

    L_DPO = -log sigmoid(-beta ([e_theta(x+) - e_theta0(x+)] - [e_theta(x-) - e_theta0(x-)])),  e(x) = (eps_hat(x_t, t, c) - eps)^2
    L_ppl = ||eps_theta(x+_t, t, class prompt) - eps||^2
    L     = L_DPO + L_ppl

"Learning to protect": every step copies theta, personalizes the copy (DreamBooth with prior preservation), and after each of its
`simulated_steps` steps takes the gradient of L at the copy; theta makes one AdamW step along their sum.

As in the official code: e is taken per latent value, not per picture, beta 100, rate 5e-6 for both, batches of 1, 800 steps, no clipping.
The paper simulates 20 steps, the code's default is 30; we take the paper's. Different: x+ are drawn with the solver of the suite and not
chosen to resemble the photos (the official code can read hand-made pairs), latents are the means of the posterior, velocity models are
compared on velocity, and terms of one loss draw timesteps of their own. It was made as a protection: nothing else is assumed. Several
subjects take turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn.functional import logsigmoid

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel, finetune

from .persguard.objective import Samples, TextStates, class_prompts, teacher_pool, weighted, with_gradients


@dataclass(frozen=True)
class APDMConfig:
    """Defaults of the official code, `simulated_steps` of the paper."""

    steps: int = 800
    simulated_steps: int = 20
    rate: float = 5e-6
    simulated_rate: float = 5e-6
    batch: int = 1
    beta: float = 100.0
    prior_weight: float = 1.0  # of L_ppl, and of prior preservation in the simulated personalization
    class_pictures: int = 200
    gradient_checkpointing: bool = False


class APDM(Method):
    """APDM: along simulated personalizations, pictures of the class are preferred to the protected photos."""

    Config: ClassVar[type] = APDMConfig
    card: ClassVar[Card] = Card(
        "Anti-Personalized Diffusion Model (APDM)",
        paper="Perturb a Model, Not an Image: Towards Robust Privacy Protection via Anti-Personalized Diffusion Models",
        venue="NeurIPS",
        year=2025,
        repository="KU-VGI/APDM",
        controls="the released model",
        knows="the protected photos, their instance and class prompts, and how the adversary fine-tunes",
    )
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"model"})

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        config: APDMConfig = self.config
        released, table = base.clone("unet"), TextStates(base, base, set())
        if config.gradient_checkpointing:
            released.unet.enable_gradient_checkpointing()
        wanted = {subject.words.class_noun: class_prompts(subject)[subject.words.class_noun] for subject in subjects}
        with torch.no_grad():
            photos = [base.encode(subject.photos) for subject in subjects]
            pool = teacher_pool(wanted, (), base, config.class_pictures, 0.0, rng).latents

        def some(latents: torch.Tensor) -> torch.Tensor:
            return latents[torch.randint(len(latents), (config.batch,), generator=rng)]

        def loss(step: int) -> torch.Tensor:
            turn = step % len(subjects)
            words, own = subjects[turn].words, photos[turn]
            others, instance = pool[words.class_noun], [words.instance_prompt] * config.batch
            copy = released.clone("unet")
            parameters = list(copy.unet.requires_grad_(True).parameters())
            adversary = torch.optim.AdamW(parameters, lr=config.simulated_rate)
            total = [torch.zeros_like(parameter) for parameter in parameters]
            for _ in range(config.simulated_steps):
                prior = (config.prior_weight, Samples(some(others), [wanted[words.class_noun]] * config.batch))
                weighted([(1.0, Samples(some(own), instance)), prior], copy, base, table, rng).backward()
                adversary.step()
                adversary.zero_grad(set_to_none=True)
                prior = (config.prior_weight, Samples(some(others), [wanted[words.class_noun]] * config.batch))
                protection = weighted([prior], copy, base, table, rng)
                protection = protection + preference(some(own), some(others), table(instance), copy, base, config.beta, rng)
                for accumulated, gradient in zip(total, torch.autograd.grad(protection, parameters), strict=True):
                    accumulated.add_(gradient)
            return with_gradients(list(released.unet.parameters()), total)

        finetune(
            released.unet.parameters(),
            loss,
            steps=config.steps,
            rate=config.rate,
            clip=math.inf,
            description="APDM",
            half=base.precision == "fp16",
        )
        return Release(model=released)


def preference(
    unwanted: torch.Tensor,
    wanted: torch.Tensor,
    states: torch.Tensor,
    student: DiffusionModel,
    teacher: DiffusionModel,
    beta: float,
    rng: torch.Generator,
) -> torch.Tensor:
    """L_DPO, a scalar: how little the student came to denoise the latents `wanted` better than `unwanted`, (N, C, h, w) each, since the
    teacher; noise and timesteps are the same for a pair."""
    noise, timesteps = teacher.noise(wanted.shape, rng).repeat(2, 1, 1, 1), teacher.timesteps(len(wanted), rng).repeat(2)
    latents, states = torch.cat([wanted, unwanted]), states.repeat(2, 1, 1)
    noisy, target = teacher.add_noise(latents, noise, timesteps), teacher.target(latents, noise, timesteps)
    with torch.no_grad():
        before = (teacher.predict(noisy, timesteps, states) - target).square()
    better, worse = ((student.predict(noisy, timesteps, states) - target).square() - before).chunk(2)
    return -logsigmoid(-beta * (better - worse)).mean()
