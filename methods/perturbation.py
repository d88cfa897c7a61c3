"""What protections that change photos share: projected gradient ascent in an L-infinity ball, and a surrogate of the adversary's model.

Inside a method pixels are in [0, 1]: a radius is `levels / 255`, and the 0.05 that papers write for pixels in [-1, 1] is 6.4 levels.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Method, Release, Subject, Words
from persbench.diffusion import DiffusionModel
from persbench.diffusion.training import descend
from persbench.progress import steps as progress_steps

Objective = Callable[[torch.Tensor, int], torch.Tensor]  # photos (N, 3, H, W) in [0, 1] and the number of the step -> scalar
View = Callable[[torch.Tensor], torch.Tensor]  # a differentiable transformation of photos

DENOISER = r"^unet\."
DENOISER_AND_TEXT_ENCODER = r"^(unet|text_encoder)\."
CROSS_ATTENTION_KEYS_AND_VALUES = r"^unet\..*attn2\.to_[kv]\."

# Only the direction of a gradient is used. A power of two changes no bit of it in fp32 and keeps small values from vanishing in fp16.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class PerturbationConfig:
    """`budget_levels`: the paper's budget, L-infinity in 8-bit levels; `step_levels`: one step at that budget, in levels.

    A run that sets another budget scales the step in proportion.
    """

    budget_levels: float
    steps: int
    step_levels: float


class Perturbation(Method):
    """A protection that changes the photos of one subject at a time."""

    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"photos"})

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        # A change by whole levels survives rounding to 8 bits; a fraction on top could be rounded up and out of the budget.
        whole = math.floor(budget.levels) / 255
        released = {}
        for subject in subjects:
            photos = subject.photos.to(base.device)
            perturbed = self.perturb(replace(subject, photos=photos), base, budget.levels / 255, rng).detach()
            released[subject.name] = project(perturbed, photos, whole).to(subject.photos.device)
        return Release(photos=released)

    @abstractmethod
    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        """Photos (N, 3, H, W) of the subject within `radius` of its own, both in [0, 1]. `base` and the subject stay as they are."""

    def step(self, radius: float) -> float:
        """Size of one step in [0, 1] units at this radius."""
        config: PerturbationConfig = self.config
        return radius * config.step_levels / config.budget_levels


def project(photos: torch.Tensor, around: torch.Tensor, radius: float) -> torch.Tensor:
    """The nearest photos within `radius` of `around` (L-infinity) and in [0, 1]."""
    return (around + (photos - around).clamp(-radius, radius)).clamp(0, 1)


def random_start(photos: torch.Tensor, radius: float, rng: torch.Generator) -> torch.Tensor:
    """Photos moved to a uniformly random point of their ball."""
    offset = torch.rand(photos.shape, generator=rng).to(photos.device) * 2 - 1
    return project(photos + radius * offset, photos, radius)


def ascend(
    objective: Objective,
    photos: torch.Tensor,
    *,
    around: torch.Tensor,
    radius: float,
    step: float | Callable[[int], float | torch.Tensor],
    steps: int,
    direction: Literal["sign", "l2"] = "sign",
    minimise: bool = False,
    views: Sequence[View] = (),
    description: str = "",
) -> torch.Tensor:
    """Projected gradient ascent from `photos`: x <- project(x + step * direction(gradient)), `steps` times.

    `direction`: the sign of each value, or each photo's gradient divided by its L2 norm. `step`: a size for all, or a function of the
    step's number, called once the gradient is there, to one size or to sizes (N, 1, 1, 1). `views`: transformations over which the
    gradient is averaged (expectation over transformation, Athalye et al., ICML 2018); their graphs are not kept at once.
    `description` names the work for the progress report; without one there is none (a loop outside reports).
    """
    photos = photos.detach()
    for number in progress_steps(range(steps), description) if description else range(steps):
        gradient = torch.zeros_like(photos)
        for view in views or (_same,):
            moving = photos.clone().requires_grad_(True)
            gradient += torch.autograd.grad(objective(view(moving), number) * _LOSS_SCALE, moving)[0]
        move = (step(number) if callable(step) else step) * (gradient.sign() if direction == "sign" else _unit(gradient))
        photos = project(photos - move if minimise else photos + move, around, radius)
    return photos


class Ascent(Perturbation):
    """A perturbation that is projected gradient ascent on one objective, with fixed models, and nothing else."""

    starts_at_random: ClassVar[bool] = True

    @abstractmethod
    def objective(self, subject: Subject, base: DiffusionModel, rng: torch.Generator) -> Objective:
        """What is raised. Rows of a batch are photos: no row's gradient may depend on another row but for a positive factor."""

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        photos, config = subject.photos, self.config
        start = random_start(photos, radius, rng) if self.starts_at_random else photos
        objective = self.objective(subject, base, rng)
        name = type(self).__name__.lower()
        return ascend(objective, start, around=photos, radius=radius, step=self.step(radius), steps=config.steps, description=name)


def _unit(gradient: torch.Tensor) -> torch.Tensor:
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _same(photos: torch.Tensor) -> torch.Tensor:
    return photos


def denoising_loss(model: DiffusionModel, states: torch.Tensor, rng: torch.Generator) -> Objective:
    """The objective that most methods raise: the loss that a personalizer minimises, E ||eps_theta(z_t(x), t, c) - eps||^2.

    `states` (1, L, D) are the text states of the prompt c; latents, noise and timesteps are drawn anew at each call.
    """

    def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
        latents = model.encode(photos, rng)
        return model.loss(latents, states.expand(len(latents), -1, -1), rng).mean()

    return objective


@dataclass(frozen=True)
class DreamBoothSurrogateConfig(PerturbationConfig):
    """How the surrogate learns; the defaults are those of Anti-DreamBooth's scripts, which most later methods took over."""

    surrogate_rate: float = 5e-7
    train_text_encoder: bool = True
    prior_weight: float = 1.0  # of prior preservation; 0 leaves it out
    class_pictures: int = 200  # for prior preservation, drawn by the base model
    class_inference_steps: int = 50
    class_guidance: float = 7.5


@dataclass(frozen=True)
class Prior:
    """Prior preservation: latents (N, C, h, w) of the class's pictures, and the weight of their loss."""

    latents: torch.Tensor
    weight: float

    @classmethod
    @torch.no_grad()
    def draw(cls, words: Words, base: DiffusionModel, config: DreamBoothSurrogateConfig, rng: torch.Generator) -> Prior:
        """Pictures that the base model makes for the class prompt."""
        prompts = [words.class_prompt] * config.class_pictures
        pictures = base.sample(prompts, rng, inference_steps=config.class_inference_steps, guidance=config.class_guidance)
        return cls(torch.cat([base.encode(part) for part in pictures.split(16)]), config.prior_weight)


class Surrogate:
    """A copy of the base model that learns photos as DreamBooth does, a few steps at a time; its AdamW keeps its moments.

    `trained` is a regular expression over the names of weights ("unet.conv_in.weight"). `batch`: photos a step, and as many of the
    class's pictures with a `prior`. `model` is the copy; outside `train` its weights need no gradient.
    """

    def __init__(
        self, base: DiffusionModel, words: Words, *, rate: float, trained: str = DENOISER, batch: int = 1, prior: Prior | None = None
    ) -> None:
        parts = sorted({name.split(".")[0] for name in base.state() if re.search(trained, name)})
        self.model, self.words, self.rate, self.trained, self.batch, self.prior = base.clone(*parts), words, rate, trained, batch, prior
        self.parameters = [
            parameter
            for part in parts
            for name, parameter in getattr(self.model, part).named_parameters()
            if re.search(trained, f"{part}.{name}")
        ]
        self.restart()

    @classmethod
    def dreambooth(
        cls, words: Words, base: DiffusionModel, config: DreamBoothSurrogateConfig, rng: torch.Generator, batch: int = 1
    ) -> Surrogate:
        """A surrogate as configured; draws the class's pictures first where it needs them."""
        prior = Prior.draw(words, base, config, rng) if config.prior_weight and config.class_pictures else None
        trained = DENOISER_AND_TEXT_ENCODER if config.train_text_encoder else DENOISER
        return cls(base, words, rate=config.surrogate_rate, trained=trained, batch=batch, prior=prior)

    def restart(self) -> None:
        """Forget the moments of AdamW."""
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.rate, weight_decay=1e-2)
        self.scaler = torch.amp.GradScaler(enabled=self.model.precision == "fp16" and torch.cuda.is_available())

    def snapshot(self) -> list[torch.Tensor]:
        """Copies of the trained weights, to go back to."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def restore(self, snapshot: list[torch.Tensor]) -> None:
        """Go back to these weights, with a fresh AdamW."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, snapshot, strict=True):
                parameter.copy_(value)
        self.restart()

    def states(self) -> torch.Tensor:
        """Text states (1, L, D) of the instance prompt, by the text encoder as it is now."""
        with torch.no_grad():
            return self.model.embed([self.words.instance_prompt])

    def train(self, photos: torch.Tensor, steps: int, rng: torch.Generator, description: str = "") -> None:
        """`steps` steps down the DreamBooth loss on random rows of `photos` (N, 3, H, W) in [0, 1]."""
        model, prior = self.model, self.prior
        with torch.no_grad():
            latents = model.encode(photos, rng)
        prompts = [self.words.instance_prompt, *([self.words.class_prompt] if prior else [])]
        learns_words = any(p is q for p in self.parameters for q in model.text_encoder.parameters())
        with torch.no_grad():
            fixed = model.embed(prompts)
        with self.learning():
            for _ in progress_steps(range(steps), description) if description else range(steps):
                shown = [latents[torch.randint(len(latents), (self.batch,), generator=rng)]]
                if prior:
                    shown.append(prior.latents[torch.randint(len(prior.latents), (self.batch,), generator=rng)])
                states = model.embed(prompts) if learns_words else fixed
                losses = model.loss(torch.cat(shown), states.repeat_interleave(self.batch, 0), rng).view(len(shown), -1).mean(1)
                self.descend(losses[0] + prior.weight * losses[1] if prior else losses[0])

    def descend(self, loss: torch.Tensor) -> None:
        """One step of AdamW down `loss`, a scalar that was computed while `learning`."""
        descend(self.optimizer, loss, self.scaler, "surrogate")

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The trained weights need their gradients."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
