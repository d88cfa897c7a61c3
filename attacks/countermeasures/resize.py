"""Resizing down and up again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure

from .editing import edited


@dataclass(frozen=True)
class ResizeConfig:
    """`scale`: the smaller side by the original one."""

    scale: Annotated[float, Field(gt=0)] = 0.5
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"


class Resize(Countermeasure):
    """Each photo is made smaller and brought back to its size, both times with the same interpolation."""

    Config: ClassVar[type] = ResizeConfig
    card: ClassVar[Card] = Card("Resizing", controls="the photos before personalization", knows="nothing")

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        resampling = Image.Resampling[self.config.interpolation.upper()]
        height, width = (max(1, round(side * self.config.scale)) for side in photos.shape[-2:])
        return edited(photos, lambda picture: picture.resize((width, height), resampling).resize(picture.size, resampling))
