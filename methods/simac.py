"""Simple anti-customization: chosen timesteps and a feature loss on top of alternating surrogate and perturbation learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel
from persbench.errors import PersbenchError
from persbench.progress import steps as progress_steps

from .aspl import AlternatingConfig, alternate
from .perturbation import Objective, Perturbation, Surrogate, ascend


@dataclass(frozen=True)
class TimestepSearchConfig(AlternatingConfig):
    """ASPL with SimAC's greedy search of timesteps."""

    search_candidates: int = 5  # random timesteps whose gradients are compared
    search_window: int = 20  # timesteps on either side of the weakest one that are dropped
    search_keep: int = 100  # the search stops when no more are left


@dataclass(frozen=True)
class SimACConfig(TimestepSearchConfig):
    """SimAC's `attack_timestep.sh`: budget 16/255 and step 0.005 for pixels in [-1, 1]; rounds as in ASPL."""

    budget_levels: float = 8.0
    feature_weight: float = 1.0


class SimAC(Perturbation):
    """ASPL at the timesteps that move the pixels, with the last features of the denoiser driven away from those of the clean photo.

    Before the rounds, for each photo a greedy search: of a few random timesteps, the neighbourhood of the one with the smallest
    sum |grad_x L_t| is dropped and the photo takes a step at the one with the largest, until 100 timesteps T(x) are left. Then

        x' = argmax E_{t in T(x)} ||eps_theta'(z_t(x'), t) - eps||^2 + weight * mean_l ||F_l(z_t(x')) - F_l(z_t(x))||^2

    with F_l the residual branches (second convolutions) of the last up block, both noised alike. Source: SimAC and its official code.
    Differences from that code: there the feature term is detached, so that it has no gradient and changes nothing (`feature_weight=0`
    gives that); its reference is the photo at the round's beginning, here it is the clean photo; the search runs over all photos as one
    batch; and those of ASPL.
    """

    Config: ClassVar[type] = SimACConfig
    card: ClassVar[Card] = Card(
        "Simple anti-customization (SimAC)",
        paper="SimAC: A Simple Anti-Customization Method for Protecting Face Privacy against Text-to-Image Synthesis (Wang et al.)",
        venue="CVPR",
        year=2024,
        repository="somuchtome/SimAC",
        controls="the published photos",
        knows="the base model, the personalizer's loss, the identifier and the class word",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: SimACConfig = self.config
        step = self.step(radius)
        surrogate = Surrogate.dreambooth(subject.words, base, config, rng)
        kept = greedy_timesteps(base, surrogate.states(), subject.photos, config, radius, step, rng)

        def attack(surrogate: Surrogate, photos: torch.Tensor) -> torch.Tensor:
            objective = feature_loss(surrogate.model, surrogate.states(), subject.photos, kept, config.feature_weight, rng)
            return ascend(objective, photos, around=subject.photos, radius=radius, step=step, steps=config.steps)

        return alternate([surrogate], subject.photos, config, attack, rng, "simac")


def greedy_timesteps(
    model: DiffusionModel,
    states: torch.Tensor,
    photos: torch.Tensor,
    config: TimestepSearchConfig,
    radius: float,
    step: float,
    rng: torch.Generator,
) -> torch.Tensor:
    """Which timesteps are kept for each photo: booleans (N, T). Raises PersbenchError when the window could leave none."""
    window, length = config.search_window, model.schedule.config.num_train_timesteps
    if 2 * window > config.search_keep or config.search_candidates < 1:
        raise PersbenchError(
            f"search_window={window} drops {2 * window} timesteps at once: search_keep must be as many, search_candidates at least 1"
        )
    kept = torch.ones(len(photos), length, dtype=torch.bool)
    moved = photos
    for _ in progress_steps(range(length), "timestep search"):
        open_rows = kept.sum(dim=1) > config.search_keep
        if not open_rows.any():
            break
        times = torch.stack([random_timesteps(kept, rng) for _ in range(config.search_candidates)])
        scores = torch.stack([_gradient(model, states, moved, each, rng).abs().sum(dim=(1, 2, 3)) for each in times]).cpu()
        weakest = times.gather(0, scores.argmin(dim=0, keepdim=True))[0].clamp(window, length - window)
        strongest = times.gather(0, scores.argmax(dim=0, keepdim=True))[0]
        for row in open_rows.nonzero().flatten().tolist():
            kept[row, weakest[row] - window : weakest[row] + window] = False

        def objective(photos: torch.Tensor, number: int, timesteps: torch.Tensor = strongest) -> torch.Tensor:
            return _loss(model, states, photos, timesteps, rng)

        moved = ascend(objective, moved, around=photos, radius=radius, step=step, steps=1)
    return kept


def random_timesteps(kept: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One of the kept timesteps (N, T) for each photo, evenly: (N,)."""
    return torch.multinomial(kept.float(), 1, generator=rng)[:, 0]


def _loss(model: DiffusionModel, states: torch.Tensor, photos: torch.Tensor, timesteps: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    latents = model.encode(photos, rng)
    return model.loss(latents, states.expand(len(latents), -1, -1), rng, timesteps.to(latents.device)).sum()


def _gradient(
    model: DiffusionModel, states: torch.Tensor, photos: torch.Tensor, timesteps: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    photos = photos.clone().requires_grad_(True)
    return torch.autograd.grad(_loss(model, states, photos, timesteps, rng), photos)[0]


def feature_loss(
    model: DiffusionModel, states: torch.Tensor, clean: torch.Tensor, kept: torch.Tensor, weight: float, rng: torch.Generator
) -> Objective:
    """The denoising loss at kept timesteps, plus `weight` times the squared distance of the features from those of the clean photos."""

    def objective(photos: torch.Tensor, step: int) -> torch.Tensor:
        timesteps = random_timesteps(kept, rng).to(photos.device)
        latents = model.encode(photos, rng)
        noise, rows = model.noise(latents.shape, rng), states.expand(len(latents), -1, -1)
        with features(model.unet) as found:
            predicted = model.predict(model.add_noise(latents, noise, timesteps), timesteps, rows)
        loss = (predicted - model.target(latents, noise, timesteps)).square().mean()
        if not weight:
            return loss
        with torch.no_grad(), features(model.unet) as wanted:
            model.predict(model.add_noise(model.encode(clean, rng), noise, timesteps), timesteps, rows)
        distances = [(mine - theirs).square().mean() for mine, theirs in zip(found, wanted, strict=True)]
        return loss + weight * torch.stack(distances).mean()

    return objective


@contextmanager
def features(unet: Any) -> Iterator[list[torch.Tensor]]:
    """Collects what the second convolutions of the last up block give, (N, C, h, w) each, in fp32."""
    found: list[torch.Tensor] = []
    hooks = [
        block.conv2.register_forward_hook(lambda module, inputs, output: found.append(output.float()))
        for block in unet.up_blocks[-1].resnets
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
