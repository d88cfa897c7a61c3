"""Noise without a purpose: what a perturbation of this size does by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel


@dataclass(frozen=True)
class RandomNoiseConfig:
    """`budget_levels`: L-infinity in 8-bit levels, unless the run sets a budget for all."""

    budget_levels: float = 8.0


class RandomNoise(Method):
    """Random signs at full budget on every pixel and channel: the reference that image-level protections must beat."""

    Config: ClassVar[type] = RandomNoiseConfig
    card: ClassVar[Card] = Card("Random noise", controls="the published photos", knows="nothing")
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"photos"})

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        released = {}
        for subject in subjects:
            signs = torch.randint(0, 2, subject.photos.shape, generator=rng).float() * 2 - 1
            released[subject.name] = (subject.photos + signs * budget.levels / 255).clamp(0, 1)
        return Release(photos=released)
