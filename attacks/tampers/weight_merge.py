"""Merging with the public weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Tamper
from persbench.diffusion import DiffusionModel


@dataclass(frozen=True)
class WeightMergeConfig:
    """`share` of the public checkpoint in the average."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5


class WeightMerge(Tamper):
    """The released weights are averaged with those of the public checkpoint from before any protection.

    An adversary with that checkpoint could personalize it alone; merging is for whoever wants what else the release has learned.
    """

    Config: ClassVar[type] = WeightMergeConfig
    card: ClassVar[Card] = Card("Weight merging", controls="the released model", knows="the public model")

    @torch.no_grad()
    def tamper(self, model: DiffusionModel, adversary: Adversary, rng: torch.Generator) -> DiffusionModel:
        public = adversary.public.state()
        released = model.difference(adversary.public)
        return model.with_weights({name: torch.lerp(mine, public[name].to(mine), self.config.share) for name, mine in released.items()})
