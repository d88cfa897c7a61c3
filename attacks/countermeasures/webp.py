"""WebP compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure

from .editing import edited, stored


@dataclass(frozen=True)
class WebPConfig:
    """`quality` 80: what Pillow writes unless told otherwise."""

    quality: Annotated[int, Field(ge=0, le=100)] = 80


class WebP(Countermeasure):
    """Each photo is stored as a lossy WebP file of a given quality and read again, as many sites do with uploads."""

    Config: ClassVar[type] = WebPConfig
    card: ClassVar[Card] = Card("WebP compression", controls="the photos before personalization", knows="nothing")

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        return edited(photos, lambda picture: stored(picture, format="WEBP", quality=self.config.quality))
