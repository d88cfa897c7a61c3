"""Total-variation denoising."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch.nn.functional import pad

from persbench.contracts import Adversary, Card, Countermeasure


@dataclass(frozen=True)
class TotalVariationConfig:
    """`weight` 0.1 and `steps` 200 are the defaults of scikit-image's `denoise_tv_chambolle`, which stops earlier when it may."""

    weight: Annotated[float, Field(gt=0)] = 0.1
    steps: Annotated[int, Field(ge=1)] = 200


def total_variation_denoised(photos: torch.Tensor, weight: float, steps: int) -> torch.Tensor:
    """argmin_u 1/2 |u - photos|^2 + weight * TV(u) for each channel of (N, C, H, W), by Chambolle's fixed point."""
    dual = photos.new_zeros(2, *photos.shape)

    def primal() -> torch.Tensor:
        down, right = dual
        return photos + down - pad(down, (0, 0, 1, 0))[..., :-1, :] + right - pad(right, (1, 0))[..., :-1]

    for _ in range(steps):
        found = primal()
        slope = torch.stack([pad(found.diff(dim=-2), (0, 0, 0, 1)), pad(found.diff(dim=-1), (0, 1))])
        dual = (dual + slope / 4) / (1 + slope.square().sum(0).sqrt() / (4 * weight))
    return primal()


class TotalVariation(Countermeasure):
    """Total-variation denoising (Rudin, Osher and Fatemi's model), solved by Chambolle's algorithm for each channel.

    Guo et al. (ICLR 2018), whom this field follows, also drop pixels at random before they minimise; this keeps all of them.
    """

    Config: ClassVar[type] = TotalVariationConfig
    card: ClassVar[Card] = Card(
        "Total-variation denoising",
        paper="Chambolle, An Algorithm for Total Variation Minimization and Applications",
        venue="Journal of Mathematical Imaging and Vision",
        year=2004,
        controls="the photos before personalization",
        knows="nothing",
    )

    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        return total_variation_denoised(photos, self.config.weight, self.config.steps).clamp(0, 1)
