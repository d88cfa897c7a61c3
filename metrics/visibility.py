"""What does the protection do to the published photos?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from persbench.contracts import Card, Evidence, Metric, Row, rows_of
from persbench.tracks.base import Evaluators

from .lpips import lpips_network

IDENTICAL_PSNR = 100.0  # dB, reported for a photo that was not changed


def linf_levels(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Largest change of each photo (N,) in 8-bit levels; inputs (N, 3, H, W) in [0, 1]."""
    return ((after - before).abs().amax(dim=(1, 2, 3)) * 255).round()


def psnr(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each photo (N,), at most 100."""
    error = (after - before).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp_min(1e-12).log10()).clamp_max(IDENTICAL_PSNR)


def ssim(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each photo (N,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(after, before, data_range=1.0, reduction="none")
    assert isinstance(values, torch.Tensor)
    return values.reshape(-1)


class Visibility(Metric):
    """Change of the published photos, measured on the saved pictures: L-inf in 8-bit levels, PSNR, SSIM, LPIPS."""

    card: ClassVar[Card] = Card("Visibility", paper="Zhang et al., CVPR 2018 (LPIPS); Wang et al., 2004 (SSIM)")
    higher_is_better: ClassVar[Mapping[str, bool]] = {"linf_levels": False, "psnr": True, "ssim": True, "lpips": False}

    def measure(self, evidence: Evidence, evaluators: Evaluators) -> list[Row]:
        before, after = evidence.published, evidence.released
        rows = rows_of("linf_levels", "released", linf_levels(before, after))
        rows += rows_of("psnr", "released", psnr(before, after))
        rows += rows_of("ssim", "released", ssim(before, after))
        return rows + rows_of("lpips", "released", lpips_network()(after, before))
