"""IMMA's alternation against values computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from persbench.methods.imma import IMMA
from torch import nn

from persbench.contracts import Budget, Language, Subject, Words


class Denoiser(nn.Module):
    """A projection k and another weight o; the adaptation loss is (k + o)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k, self.other = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))


def test_the_inner_step_lowers_the_loss_on_all_weights_and_the_outer_raises_it_on_the_projections() -> None:
    drawn: list[int] = []

    class Model(SimpleNamespace):
        def clone(self, *_):
            return Model(unet=Denoiser(), precision="fp32")

        def encode(self, photos):
            return photos

        def embed(self, prompts):
            return torch.zeros(len(prompts), 2, 3)

        def loss(self, latents, states, rng):
            assert states.shape == (5, 2, 3)
            drawn.extend(latents[:, 0, 0, 0].int().tolist())
            return (self.unet.to_k + self.unet.other).square().expand(len(latents))

        def with_weights(self, changed):
            return changed

    photos = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    subject = Subject("ada", photos, Words("sks", "person"), Language(("sks",), ("person",), (), ""))
    method = IMMA(IMMA.Config(steps=1, rate=0.2, inner_rate=0.1, batch=5))
    released = method.protect([subject], Model(precision="fp32"), Budget(), torch.Generator().manual_seed(0)).model
    # AdamW's first step is the rate times the sign, after a decay of rate * 0.01.
    # Inner: k = 0.999 - 0.1, o = 1.998 - 0.1. Outer: k = 0.899 * 0.998 + 0.2. Released is k alone.
    assert list(released) == ["unet.to_k"]
    assert released["unet.to_k"].item() == pytest.approx(0.899 * 0.998 + 0.2, abs=1e-6)
    assert len(drawn) == 10 and set(drawn) <= {0, 1, 2, 3}
