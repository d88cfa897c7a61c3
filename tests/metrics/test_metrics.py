"""Metrics against hand-computed values and reference implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchmetrics
from persbench.metrics.identity import similarity
from persbench.metrics.lpips import lpips_network
from persbench.metrics.visibility import linf_levels, psnr, ssim

RNG = torch.Generator().manual_seed(0)
BEFORE = torch.rand(2, 3, 64, 64, generator=RNG)
AFTER = (BEFORE + 0.05 * torch.randn(BEFORE.shape, generator=RNG)).clamp(0, 1)


def test_similarity_is_the_cosine_with_the_mean_reference() -> None:
    references = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = similarity(torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]), references)
    assert torch.allclose(found, torch.tensor([0.5**0.5, 1.4 * 0.5**0.5, -(0.5**0.5)]), atol=1e-6)


def test_linf_is_in_levels() -> None:
    before = torch.zeros(2, 3, 4, 4)
    after = before.clone()
    after[1, 2, 3, 3] = 16 / 255
    assert linf_levels(before, after).tolist() == [0.0, 16.0]


def test_psnr_and_ssim_against_torchmetrics() -> None:
    reference = torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0)
    for index in range(2):
        assert psnr(BEFORE, AFTER)[index] == pytest.approx(reference(AFTER[index], BEFORE[index]).item(), rel=1e-4)
    reference = torchmetrics.image.StructuralSimilarityIndexMeasure(data_range=1.0)
    assert ssim(BEFORE, AFTER).mean().item() == pytest.approx(reference(AFTER, BEFORE).item(), rel=1e-4)
    assert psnr(BEFORE, BEFORE).tolist() == [100.0, 100.0]


def test_lpips_has_the_published_linear_weights() -> None:
    """torchmetrics ships the linear layers of LPIPS v0.1 (AlexNet): ours are the same to fp16."""
    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    published = torch.load(path, map_location="cpu", weights_only=True)
    for index, weight in enumerate(lpips_network().weights):
        assert torch.allclose(weight, published[f"lin{index}.model.1.weight"], atol=1e-3)


def test_lpips_is_a_distance() -> None:
    network = lpips_network()
    assert torch.equal(network(BEFORE, BEFORE), torch.zeros(2))
    near, far = network(BEFORE, AFTER), network(BEFORE, BEFORE.flip(-1))
    assert (near > 0).all()
    assert (near < far).all()
    assert torch.allclose(near, network(AFTER, BEFORE))
