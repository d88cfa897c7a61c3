"""Photos that were never protected among the protected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from persbench.contracts import Adversary, Card, Countermeasure
from persbench.errors import PersbenchError


@dataclass(frozen=True)
class MixedConfig:
    """`fraction` of the photos that are clean, to the nearest photo (1 - poison rate, where that word is used)."""

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.5


class Mixed(Countermeasure):
    """The first photos are replaced by others of the same subject that were never protected: partial protection.

    Raises PersbenchError when the adversary has too few of those.
    """

    Config: ClassVar[type] = MixedConfig
    card: ClassVar[Card] = Card(
        "Partial protection",
        paper="Van Le et al., Anti-DreamBooth: Protecting Users from Personalized Text-to-image Synthesis",
        venue="ICCV",
        year=2023,
        repository="VinAIResearch/Anti-DreamBooth",
        controls="which photos are used for personalization",
        knows="photos of the subject that were never protected",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        count, clean = round(self.config.fraction * len(photos)), adversary.clean_photos
        if count > len(clean):
            raise PersbenchError(f"mixed needs {count} clean photos and the adversary has {len(clean)}; lower its fraction")
        return torch.cat([clean[:count], photos[count:]])
