"""IMMA: weights from which the adaptation starts badly (Zheng and Yeh, ECCV 2024, arXiv 2311.18815).

Two levels, a step of each in turn, on the adaptation's own loss L (here DreamBooth's, on the protected photos x and their prompt c):

    inner, an adversary          theta <- theta - inner_rate grad L(x, c; theta)                all of the denoiser
    outer, the immunization      theta_S <- theta_S + rate grad L(x, c; theta)                  its attention projections S

with AdamW for both. Released are the theta_S alone, on the base model's other weights.

As in the official DreamBooth script: S is the query, key, value and output projections of all attention layers (the script calls them
cross-attention, its filter takes self-attention too), theta_S keeps what the inner steps did to it, an outer step draws a batch of its own,
batches of 1 and 1,000 steps of both kinds together. Different: latents are the means of the posterior, photos are not cropped, there is
no prior preservation (off by default there). The official scripts against LoRA and textual inversion, whose inner step trains the
adapter instead, are not here. As a protection: the photos that the official code calls instance images are those to be published.
Several subjects take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel, finetune

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


@dataclass(frozen=True)
class IMMAConfig:
    """Defaults of the official DreamBooth script. `steps`: each is an inner and an outer one."""

    steps: int = 500
    rate: float = 2e-5
    inner_rate: float = 5e-6
    batch: int = 1
    gradient_checkpointing: bool = False


class IMMA(Method):
    """IMMA: attention weights that raise the loss of a fine-tuning which lowers it at the same time."""

    Config: ClassVar[type] = IMMAConfig
    card: ClassVar[Card] = Card(
        "IMMA",
        paper="IMMA: Immunizing Text-to-Image Models against Malicious Adaptation",
        venue="ECCV",
        year=2024,
        repository="amberyzheng/IMMA",
        controls="the released model",
        knows="the protected photos, their instance prompt, and how the adversary fine-tunes",
    )
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"model"})

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        config: IMMAConfig = self.config
        released = base.clone("unet")
        if config.gradient_checkpointing:
            released.unet.enable_gradient_checkpointing()
        named = dict(released.unet.named_parameters())
        immunized = [parameter for name, parameter in named.items() if any(part in name for part in PROJECTIONS)]
        adversary = torch.optim.AdamW(named.values(), lr=config.inner_rate)
        with torch.no_grad():
            photos = [base.encode(subject.photos) for subject in subjects]
            states = base.embed([subject.words.instance_prompt for subject in subjects])

        def adaptation(turn: int) -> torch.Tensor:
            rows = torch.randint(len(photos[turn]), (config.batch,), generator=rng)
            return released.loss(photos[turn][rows], states[turn].expand(len(rows), -1, -1), rng).mean()

        def loss(step: int) -> torch.Tensor:
            turn = step % len(subjects)
            released.unet.requires_grad_(True)
            adaptation(turn).backward()
            torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
            adversary.step()
            adversary.zero_grad(set_to_none=True)
            released.unet.requires_grad_(False)
            for parameter in immunized:
                parameter.requires_grad_(True)
            return -adaptation(turn)

        finetune(immunized, loss, steps=config.steps, rate=config.rate, description="IMMA", half=base.precision == "fp16")
        changed = {f"unet.{name}": named[name].detach() for name in named if any(part in name for part in PROJECTIONS)}
        return Release(model=base.with_weights(changed))
