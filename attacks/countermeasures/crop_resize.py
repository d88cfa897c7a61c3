"""Cropping and resizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from PIL import Image
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure

from .editing import edited


@dataclass(frozen=True)
class CropResizeConfig:
    """`share`: how much of each side is cut off."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1


class CropResize(Countermeasure):
    """A window at a random place of each photo is cut out and enlarged to the photo's size (bicubic)."""

    Config: ClassVar[type] = CropResizeConfig
    card: ClassVar[Card] = Card(
        "Cropping and resizing",
        paper="Guo et al., Countering Adversarial Images using Input Transformations",
        venue="ICLR",
        year=2018,
        controls="the photos before personalization",
        knows="nothing",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        def crop(picture: Image.Image) -> Image.Image:
            width, height = (max(1, round(side * (1 - self.config.share))) for side in picture.size)
            left = int(torch.randint(picture.width - width + 1, (1,), generator=rng))
            top = int(torch.randint(picture.height - height + 1, (1,), generator=rng))
            return picture.resize(picture.size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))

        return edited(photos, crop)
