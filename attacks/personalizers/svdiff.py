"""SVDiff: the denoiser's weights keep their singular vectors and learn other singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from persbench.contracts import Card, Words
from persbench.diffusion import DiffusionModel

from .training import Adaptation, FineTuning, PriorPreservationConfig


@dataclass(frozen=True)
class SVDiffConfig(PriorPreservationConfig):
    """Defaults of mkshing/svdiff-pytorch; official code was not published."""

    rate: float = 1e-3
    steps: int = 500
    batch: int = 1


class SpectralShift(nn.Module):
    """A weight W = U diag(sigma) V^T becomes U diag(ReLU(sigma + shift)) V^T; kernels are matrices (out, in * height * width).

    Computed as W plus the change, so that no shift is no change, bit for bit.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        for name, part in zip(("left", "values", "right"), torch.linalg.svd(weight.flatten(1), full_matrices=False), strict=True):
            self.register_buffer(name, part)
        self.shift = nn.Parameter(torch.zeros_like(self.values))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        change = (self.values + self.shift).relu() - self.values
        return weight + (self.left * change @ self.right).view_as(weight)


class SVDiff(FineTuning):
    """Shifts of the singular values of the denoiser's linear and convolutional weights, with prior preservation.

    Unlike in svdiff-pytorch, vectors (biases, and the scales of norms, which learn at 1e-6 there) and the text encoder are not trained.
    """

    Config: ClassVar[type] = SVDiffConfig
    card: ClassVar[Card] = Card(
        "SVDiff",
        paper="Han et al., SVDiff: Compact Parameter Space for Diffusion Fine-Tuning",
        venue="ICCV",
        year=2023,
        controls="fine-tuning of the released model",
        knows="the published photos, the class of the subject, and pictures of that class",
    )
    uses_class_pictures: ClassVar[bool] = True

    def adapt(self, words: Words, model: DiffusionModel, rng: torch.Generator) -> Adaptation:
        tuned = model.clone("unet")
        layers = [layer for layer in tuned.unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        shifts = [SpectralShift(layer.weight.detach()) for layer in layers]
        for layer, shift in zip(layers, shifts, strict=True):
            parametrize.register_parametrization(layer, "weight", shift)

        def merge() -> None:
            for layer in layers:
                parametrize.remove_parametrizations(layer, "weight")

        return Adaptation(tuned, [shift.shift for shift in shifts], merge)
