"""Fewer levels a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure


@dataclass(frozen=True)
class BitDepthConfig:
    """`bits` a channel; 3 is the setting of Guo et al."""

    bits: Annotated[int, Field(ge=1, le=8)] = 3


class BitDepth(Countermeasure):
    """Each channel is rounded to 2^bits evenly spaced levels, black and white among them."""

    Config: ClassVar[type] = BitDepthConfig
    card: ClassVar[Card] = Card(
        "Bit-depth reduction",
        paper="Guo et al., Countering Adversarial Images using Input Transformations",
        venue="ICLR",
        year=2018,
        controls="the photos before personalization",
        knows="nothing",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        highest = 2**self.config.bits - 1
        return (photos * highest).round() / highest
