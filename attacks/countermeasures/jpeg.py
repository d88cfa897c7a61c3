"""JPEG compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure

from .editing import edited, stored


@dataclass(frozen=True)
class JpegConfig:
    """`quality` 75: that of Guo et al., and what MetaCloak is tested with."""

    quality: Annotated[int, Field(ge=1, le=95)] = 75


class Jpeg(Countermeasure):
    """Each photo is stored as a JPEG file of a given quality and read again."""

    Config: ClassVar[type] = JpegConfig
    card: ClassVar[Card] = Card(
        "JPEG compression",
        paper="Guo et al., Countering Adversarial Images using Input Transformations",
        venue="ICLR",
        year=2018,
        controls="the photos before personalization",
        knows="nothing",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        return edited(photos, lambda picture: stored(picture, format="JPEG", quality=self.config.quality))
