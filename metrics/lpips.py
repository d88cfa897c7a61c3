"""Learned perceptual image patch similarity (LPIPS, Zhang et al., CVPR 2018) with the published AlexNet weights, version 0.1."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import torch
from torch import nn

WEIGHTS = "lpips_alexnet.safetensors"
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_CONVOLUTIONS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
_POOL_BEFORE = (1, 2)


class LPIPS(nn.Module):
    """Perceptual distance; module form, with gradients to its inputs."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in _CONVOLUTIONS)
        self.weights = nn.ParameterList(torch.zeros(1, o, 1, 1) for _, o, *_ in _CONVOLUTIONS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Channel-normalised activations of the five layers for pictures (N, 3, H, W) in [0, 1]."""
        x = (pictures * 2 - 1 - self.shift) / self.scale
        found = []
        for number, convolution in enumerate(self.convolutions):
            if number in _POOL_BEFORE:
                x = nn.functional.max_pool2d(x, 3, 2)
            x = convolution(x).relu()
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Distance of each pair, (N,); both inputs (N, 3, H, W) in [0, 1] with H, W >= 35."""
        layers = zip(self.features(first), self.features(second), self.weights, strict=True)
        return torch.stack([((a - b).square() * w).sum(1).mean(dim=(1, 2)) for a, b, w in layers]).sum(0)


@cache
def lpips_network() -> LPIPS:
    """The frozen network with the weights that ship in the package."""
    from safetensors.torch import load_file

    with torch.random.fork_rng():  # the initial weights are drawn, and thrown away
        network = LPIPS()
    state = load_file(str(files(__package__).joinpath(WEIGHTS)))
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.requires_grad_(False).eval()
