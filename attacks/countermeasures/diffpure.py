"""DiffPure: noise to a timestep, then denoise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure
from persbench.diffusion import DiffusionModel
from persbench.progress import steps


@dataclass(frozen=True)
class DiffPureConfig:
    """`timestep`: how many of the schedule's steps (1000, mostly) are gone forth and back; 100 is what GrIDPure compares itself with."""

    timestep: Annotated[int, Field(ge=0)] = 100


@torch.no_grad()
def purified(model: DiffusionModel, latents: torch.Tensor, timestep: int, rng: torch.Generator) -> torch.Tensor:
    """Latents (N, C, h, w) after `timestep` steps of the forward process and as many of ancestral DDPM sampling with the empty prompt."""
    if timestep == 0:
        return latents
    states = model.embed([""]).expand(len(latents), -1, -1)
    times = torch.full((len(latents),), timestep - 1, device=model.device)
    latents = model.add_noise(latents, model.noise(latents.shape, rng), times)
    for time in steps(range(timestep)[::-1], "purify"):
        predicted = model.predict(latents, times.fill_(time), states)
        latents = model.schedule.step(predicted, time, latents, generator=rng).prev_sample
    return latents


class DiffPure(Countermeasure):
    """Each photo's latents are noised to a timestep and denoised by the public model with the empty prompt.

    The paper purifies pixels with an unconditional diffusion model. The adversary of this field has a latent text-to-image model:
    this is the same procedure on its latents, as in SDEdit, with the autoencoder's round trip around it; variances are the schedule's,
    not learned ones.
    """

    Config: ClassVar[type] = DiffPureConfig
    card: ClassVar[Card] = Card(
        "DiffPure, in latent space",
        paper="Nie et al., Diffusion Models for Adversarial Purification",
        venue="ICML",
        year=2022,
        repository="NVlabs/DiffPure",
        controls="the photos before personalization",
        knows="the public model",
    )

    @torch.no_grad()
    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        model = adversary.public
        return model.decode(purified(model, model.encode(photos), self.config.timestep, rng))
